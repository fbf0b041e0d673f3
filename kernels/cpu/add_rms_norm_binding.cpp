// Registers add_rms_norm for the CPU. Shapes and dtypes were checked by add_rms_norm.py.
#include "add_rms_norm.h"

#include "binding.h"

namespace minimax_m2 {
namespace {

void add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, double eps, Tensor y, Tensor sum) {
  launch(add_rms_norm_table, AddRmsNormArgs{.x = x.const_data_ptr(),
                                            .residual = residual.const_data_ptr(),
                                            .x_stride = x.stride(0),
                                            .residual_stride = residual.stride(0),
                                            .weight = weight.const_data_ptr(),
                                            .y = y.mutable_data_ptr(),
                                            .sum = sum.mutable_data_ptr(),
                                            .dtype = dtype_of(x),
                                            .num_tokens = x.size(0),
                                            .hidden = x.size(1),
                                            .eps = eps});
}

}  // namespace
}  // namespace minimax_m2

STABLE_TORCH_LIBRARY_IMPL(minimax_m2, CPU, m) { m.impl("add_rms_norm", TORCH_BOX(&minimax_m2::add_rms_norm)); }
