// Registers linear for the CPU. Shapes and dtypes were checked by linear.py.
#include "linear.h"

#include "binding.h"

namespace minimax_m2 {
namespace {

void linear(const Tensor& x, const Tensor& weight, Tensor out) {
  launch(linear_table, LinearArgs{.x = x.const_data_ptr(),
                                  .x_stride = x.stride(0),
                                  .weight = weight.const_data_ptr(),
                                  .weight_stride = weight.stride(0),
                                  .dtype = dtype_of(x),
                                  .out = out.mutable_data_ptr(),
                                  .out_dtype = dtype_of(out),
                                  .num_tokens = x.size(0),
                                  .num_outputs = weight.size(0),
                                  .depth = x.size(1)});
}

}  // namespace
}  // namespace minimax_m2

STABLE_TORCH_LIBRARY_IMPL(minimax_m2, CPU, m) { m.impl("linear", TORCH_BOX(&minimax_m2::linear)); }
