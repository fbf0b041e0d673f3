// Registers fp8_linear for the CPU. Shapes and dtypes were checked by fp8_linear.py.
#include "fp8_linear.h"

#include "binding.h"
#include "node_shares_binding.h"

namespace minimax_m2 {
namespace {

void fp8_linear(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& extent,
                std::optional<Tensor> x_scale, Tensor out) {
  launch(fp8_linear_table, Fp8LinearArgs{.x = x.const_data_ptr(),
                                         .x_stride = x.stride(0),
                                         .x_dtype = dtype_of(x),
                                         .x_scale = data_or_null<float>(x_scale),
                                         .x_scale_stride = x_scale.has_value() ? x_scale->stride(0) : 0,
                                         .weight = weight.const_data_ptr(),
                                         .scale = static_cast<const float*>(scale.const_data_ptr()),
                                         .scale_width = scale.size(2),
                                         .columns = extent.size(3),
                                         .out = out.mutable_data_ptr(),
                                         .out_dtype = dtype_of(out),
                                         .num_tokens = x.size(0),
                                         .num_outputs = extent.size(1),
                                         .depth = x.size(1)});
}

}  // namespace
}  // namespace minimax_m2

STABLE_TORCH_LIBRARY_IMPL(minimax_m2, CPU, m) { m.impl("fp8_linear", TORCH_BOX(&minimax_m2::fp8_linear)); }
