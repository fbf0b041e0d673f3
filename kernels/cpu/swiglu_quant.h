// Arguments of the swiglu_quant kernel. Strides count elements.
#pragma once
#include "dtype.h"

namespace minimax_m2 {

// A group's gated values wait in float32 on the stack for their scale; swiglu_quant.py refuses wider groups.
constexpr int64_t WIDEST_GROUP = 16384;

struct SwigluQuantArgs {
  const void* gate_up;  // [T, 2*I], last dimension contiguous, gate first
  int64_t gate_up_stride;
  Dtype dtype;
  void* q;  // [T, I]
  Dtype q_dtype;
  float* scale;  // [T, ceil(I / group)]
  int64_t num_tokens;
  int64_t width;  // I
  int64_t group;
};

}  // namespace minimax_m2

MINIMAX_M2_KERNEL(void, swiglu_quant, const SwigluQuantArgs&)
