// Arguments of the router's product. Strides count elements.
#pragma once
#include "dtype.h"

namespace minimax_m2 {

struct RouterGemmArgs {
  const void* x;  // [T, H], last dimension contiguous
  int64_t x_stride;
  Dtype x_dtype;
  const float* weight;  // [E, H], last dimension contiguous
  int64_t weight_stride;
  const float* bias;  // [E] or null
  float* logits;      // [T, E]
  int64_t num_tokens;
  int64_t num_experts;
  int64_t hidden;
};

}  // namespace minimax_m2

MINIMAX_M2_KERNEL(void, router_gemm, const RouterGemmArgs&)
