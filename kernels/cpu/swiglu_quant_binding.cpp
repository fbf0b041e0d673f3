// Registers swiglu_quant for the CPU. Shapes and dtypes were checked by swiglu_quant.py.
#include "swiglu_quant.h"

#include "binding.h"

namespace minimax_m2 {
namespace {

void swiglu_quant(const Tensor& gate_up, int64_t group, Tensor q, Tensor scale) {
  launch(swiglu_quant_table, SwigluQuantArgs{.gate_up = gate_up.const_data_ptr(),
                                             .gate_up_stride = gate_up.stride(0),
                                             .dtype = dtype_of(gate_up),
                                             .q = q.mutable_data_ptr(),
                                             .q_dtype = dtype_of(q),
                                             .scale = static_cast<float*>(scale.mutable_data_ptr()),
                                             .num_tokens = q.size(0),
                                             .width = q.size(1),
                                             .group = group});
}

}  // namespace
}  // namespace minimax_m2

STABLE_TORCH_LIBRARY_IMPL(minimax_m2, CPU, m) { m.impl("swiglu_quant", TORCH_BOX(&minimax_m2::swiglu_quant)); }
