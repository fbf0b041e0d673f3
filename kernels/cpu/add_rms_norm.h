// Arguments of the add_rms_norm kernel. Strides count elements.
#pragma once
#include "dtype.h"

namespace minimax_m2 {

struct AddRmsNormArgs {
  const void* x;         // [T, H], last dimension contiguous
  const void* residual;  // [T, H], likewise
  int64_t x_stride;
  int64_t residual_stride;
  const void* weight;  // [H]
  void* y;             // [T, H]
  void* sum;           // [T, H], the new residual
  Dtype dtype;         // of all five
  int64_t num_tokens;
  int64_t hidden;
  double eps;
};

}  // namespace minimax_m2

MINIMAX_M2_KERNEL(void, add_rms_norm, const AddRmsNormArgs&)
