// Registers add_rms_norm for the CPU.
#include "add_rms_norm.h"

#include "argument_checks.h"

namespace minimax_m2 {
namespace {

void add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, double eps, Tensor y, Tensor sum) {
  // As schema/add_rms_norm.py says.
  const ScalarType dtype = x.scalar_type();
  require(is_float(x) && has_shape(x, {ANY, ANY}) && has_rows(x), "add_rms_norm");
  const int64_t num_tokens = x.size(0), hidden = x.size(1);
  require(residual.scalar_type() == dtype && has_shape(residual, {num_tokens, hidden}) && has_rows(residual) &&
              weight.scalar_type() == dtype && has_shape(weight, {hidden}) && has_rows(weight) &&
              is_dense(y, dtype, {num_tokens, hidden}) && is_dense(sum, dtype, {num_tokens, hidden}),
          "add_rms_norm");
  if (y.numel() == 0) return;
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
