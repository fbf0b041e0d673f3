// Registers swiglu for the CPU.
#include "swiglu.h"

#include "argument_checks.h"

namespace minimax_m2 {
namespace {

void swiglu(const Tensor& gate_up, Tensor y) {
  // As schema/swiglu.py says.
  require(is_float(gate_up) && has_shape(gate_up, {ANY, ANY}) && has_rows(gate_up) && gate_up.size(1) % 2 == 0 &&
              is_dense(y, gate_up.scalar_type(), {gate_up.size(0), gate_up.size(1) / 2}),
          "swiglu");
  if (y.numel() == 0) return;
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
