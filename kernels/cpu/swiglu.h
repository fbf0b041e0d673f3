// Arguments of the swiglu kernel. Strides count elements.
#pragma once
#include "dtype.h"

namespace minimax_m2 {

struct SwigluArgs {
  const void* gate_up;  // [T, 2*I], last dimension contiguous, gate first
  int64_t gate_up_stride;
  void* y;  // [T, I]
  Dtype dtype;
  int64_t num_tokens;
  int64_t width;  // I
};

}  // namespace minimax_m2

MINIMAX_M2_KERNEL(void, swiglu, const SwigluArgs&)
