// Arguments of the block_quant kernel. Strides count elements.
#pragma once
#include "dtype.h"

namespace minimax_m2 {

struct BlockQuantArgs {
  const void* x;  // [T, H], last dimension contiguous
  int64_t x_stride;
  Dtype dtype;
  Float8* q;     // [T, H]
  float* scale;  // [T, ceil(H / group)]
  int64_t num_tokens;
  int64_t hidden;
  int64_t group;
  bool power_of_two;
};

}  // namespace minimax_m2

MINIMAX_M2_KERNEL(void, block_quant, const BlockQuantArgs&)
