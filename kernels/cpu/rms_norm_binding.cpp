// Registers rms_norm for the CPU.
#include "rms_norm.h"

#include "argument_checks.h"

namespace minimax_m2 {
namespace {

void rms_norm(const Tensor& x, const Tensor& weight, double eps, Tensor y) {
  // As schema/rms_norm.py says.
  const ScalarType dtype = x.scalar_type();
  require(is_float(x) && has_shape(x, {ANY, ANY}) && has_rows(x) && weight.scalar_type() == dtype &&
              has_shape(weight, {x.size(1)}) && has_rows(weight) && is_dense(y, dtype, {x.size(0), x.size(1)}),
          "rms_norm");
  if (y.numel() == 0) return;
  launch(rms_norm_table, RmsNormArgs{.x = x.const_data_ptr(),
                                     .x_stride = x.stride(0),
                                     .weight = weight.const_data_ptr(),
                                     .y = y.mutable_data_ptr(),
                                     .dtype = dtype_of(x),
                                     .num_tokens = x.size(0),
                                     .hidden = x.size(1),
                                     .eps = eps});
}

}  // namespace
}  // namespace minimax_m2

STABLE_TORCH_LIBRARY_IMPL(minimax_m2, CPU, m) { m.impl("rms_norm", TORCH_BOX(&minimax_m2::rms_norm)); }
