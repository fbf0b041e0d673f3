// Arguments of a dense layer with an e4m3 weight. Strides count elements.
#pragma once
#include "dtype.h"

namespace minimax_m2 {

struct Fp8LinearArgs {
  const void* x;  // [T, K], last dimension contiguous
  int64_t x_stride;
  Dtype x_dtype;
  const float* x_scale;  // [T, ceil(K/columns)], or null unless x is e4m3
  int64_t x_scale_stride;
  const void* weight;  // [ceil(N/64), ceil(K/2), 64, 2] e4m3, packed by fp8_linear.py
  const float* scale;  // [ceil(N/64), ceil(K/columns), scale_width]
  int64_t scale_width;  // 64, or 2
  int64_t columns;     // inputs that share a scale
  void* out;           // [T, N]
  Dtype out_dtype;
  int64_t num_tokens;
  int64_t num_outputs;
  int64_t depth;
};

}  // namespace minimax_m2

MINIMAX_M2_KERNEL(void, fp8_linear, const Fp8LinearArgs&)
