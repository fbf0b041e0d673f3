// Arguments of the logits over the vocabulary. Strides count elements.
#pragma once
#include "dtype.h"

namespace minimax_m2 {

struct LmHeadArgs {
  const void* x;  // [T, H], last dimension contiguous
  int64_t x_stride;
  const void* weight;  // [V or more, H], last dimension contiguous
  int64_t weight_stride;
  Dtype dtype;       // of x and weight
  const void* rows;  // [N] or null: all
  Dtype rows_dtype;
  float* logits;  // [N, V]
  int64_t num_tokens;
  int64_t num_rows;
  int64_t vocab_size;
  int64_t hidden;
};

}  // namespace minimax_m2

// Returns the first element of rows outside 0..T-1, or -1.
MINIMAX_M2_KERNEL(int64_t, lm_head, const LmHeadArgs&)
