// Arguments of the rms_norm kernel. Strides count elements.
#pragma once
#include "dtype.h"

namespace minimax_m2 {

struct RmsNormArgs {
  const void* x;  // [T, H], last dimension contiguous
  int64_t x_stride;
  const void* weight;  // [H]
  void* y;             // [T, H]
  Dtype dtype;         // of all three
  int64_t num_tokens;
  int64_t hidden;
  double eps;
};

}  // namespace minimax_m2

MINIMAX_M2_KERNEL(void, rms_norm, const RmsNormArgs&)
