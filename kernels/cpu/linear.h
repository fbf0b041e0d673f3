// Arguments of a dense layer. Strides count elements.
#pragma once
#include "dtype.h"

namespace minimax_m2 {

struct LinearArgs {
  const void* x;  // [T, K], last dimension contiguous
  int64_t x_stride;
  const void* weight;  // [N, K], last dimension contiguous
  int64_t weight_stride;
  Dtype dtype;  // of x and weight
  void* out;    // [T, N]
  Dtype out_dtype;
  int64_t num_tokens;
  int64_t num_outputs;
  int64_t depth;
};

}  // namespace minimax_m2

MINIMAX_M2_TILED_KERNEL(void, linear, const LinearArgs&)
