// Arguments of the add_rms_norm_quant kernel. Strides count elements.
#pragma once
#include "dtype.h"

namespace minimax_m2 {

struct AddRmsNormQuantArgs {
  const void* x;         // [T, H], last dimension contiguous
  const void* residual;  // [T, H], likewise
  int64_t x_stride;
  int64_t residual_stride;
  const void* weight;  // [H]
  Dtype dtype;         // of x, residual, weight and sum
  Float8* q;           // [T, H]
  float* scale;        // [T, ceil(H / group)]
  void* sum;           // [T, H], the new residual
  int64_t num_tokens;
  int64_t hidden;
  int64_t group;
  double eps;
};

}  // namespace minimax_m2

MINIMAX_M2_KERNEL(void, add_rms_norm_quant, const AddRmsNormQuantArgs&)
