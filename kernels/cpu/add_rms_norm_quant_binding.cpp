// Registers add_rms_norm_quant for the CPU. Shapes and dtypes were checked by add_rms_norm_quant.py.
#include "add_rms_norm_quant.h"

#include "binding.h"

namespace minimax_m2 {
namespace {

void add_rms_norm_quant(const Tensor& x, const Tensor& residual, const Tensor& weight, double eps, int64_t group,
                        Tensor q, Tensor scale, Tensor sum) {
  launch(add_rms_norm_quant_table, AddRmsNormQuantArgs{.x = x.const_data_ptr(),
                                                       .residual = residual.const_data_ptr(),
                                                       .x_stride = x.stride(0),
                                                       .residual_stride = residual.stride(0),
                                                       .weight = weight.const_data_ptr(),
                                                       .dtype = dtype_of(x),
                                                       .q = static_cast<Float8*>(q.mutable_data_ptr()),
                                                       .scale = static_cast<float*>(scale.mutable_data_ptr()),
                                                       .sum = sum.mutable_data_ptr(),
                                                       .num_tokens = x.size(0),
                                                       .hidden = x.size(1),
                                                       .group = group,
                                                       .eps = eps});
}

}  // namespace
}  // namespace minimax_m2

STABLE_TORCH_LIBRARY_IMPL(minimax_m2, CPU, m) {
  m.impl("add_rms_norm_quant", TORCH_BOX(&minimax_m2::add_rms_norm_quant));
}
