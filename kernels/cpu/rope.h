// Arguments of the rope kernel. Strides count elements.
#pragma once
#include "rotation.h"

namespace minimax_m2 {

struct RopeArgs {
  struct Heads {
    const void* x;  // [T, count, D], last dimension contiguous
    int64_t token_stride;
    int64_t head_stride;
    void* out;  // [T, count, D], contiguous
    int count;
  } parts[2];  // q, k
  Dtype dtype;
  RotationTable table;
  int64_t num_tokens;
  int head_dim;
};

}  // namespace minimax_m2

// Returns the first token whose position is outside the table, or -1.
MINIMAX_M2_KERNEL(int64_t, rope, const RopeArgs&)
