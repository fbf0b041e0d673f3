// Registers swiglu for the CPU. Shapes and dtypes were checked by swiglu.py.
#include "swiglu.h"

#include "binding.h"

namespace minimax_m2 {
namespace {

void swiglu(const Tensor& gate_up, Tensor y) {
  launch(swiglu_table, SwigluArgs{.gate_up = gate_up.const_data_ptr(),
                                  .gate_up_stride = gate_up.stride(0),
                                  .y = y.mutable_data_ptr(),
                                  .dtype = dtype_of(gate_up),
                                  .num_tokens = y.size(0),
                                  .width = y.size(1)});
}

}  // namespace
}  // namespace minimax_m2

STABLE_TORCH_LIBRARY_IMPL(minimax_m2, CPU, m) { m.impl("swiglu", TORCH_BOX(&minimax_m2::swiglu)); }
