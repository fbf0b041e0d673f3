// Registers fp8_linear for the CPU. Shapes and dtypes were checked by fp8_linear.py; the blocks, which are data, here.
#include "fp8_linear.h"

#include "binding.h"

namespace minimax_m2 {
namespace {

int64_t blocks_of(int64_t size, int64_t block) { return (size + block - 1) / block; }

std::string grid(int64_t rows, int64_t columns) {
  return "[" + std::to_string(rows) + ", " + std::to_string(columns) + "]";
}

void fp8_linear(const Tensor& x, const Tensor& weight, const Tensor& scale, const Tensor& block,
                std::optional<Tensor> x_scale, Tensor out) {
  const auto* sizes = static_cast<const int64_t*>(block.const_data_ptr());
  const int64_t rows = sizes[0], columns = sizes[1];
  if (rows < 1 || columns < 1) reject("block is " + grid(rows, columns) + ", expected positive sizes; M2 has [128, 128]");
  const int64_t wanted_rows = blocks_of(weight.size(0), rows), groups = blocks_of(weight.size(1), columns);
  if (scale.size(0) != wanted_rows || scale.size(1) != groups) {
    reject("packed scale has shape " + grid(scale.size(0), scale.size(1)) + ", expected " + grid(wanted_rows, groups) +
           " for a weight " + grid(weight.size(0), weight.size(1)) + " in blocks of " + grid(rows, columns));
  }
  if (x_scale.has_value() && x_scale->size(1) != groups) {
    reject("x_scale has " + std::to_string(x_scale->size(1)) + " groups, expected " + std::to_string(groups) +
           ", the weight's blocks along H; quantise x with group=" + std::to_string(columns));
  }
  launch(fp8_linear_table, Fp8LinearArgs{.x = x.const_data_ptr(),
                                         .x_stride = x.stride(0),
                                         .x_dtype = dtype_of(x),
                                         .x_scale = data_or_null<float>(x_scale),
                                         .x_scale_stride = x_scale.has_value() ? x_scale->stride(0) : 0,
                                         .weight = weight.const_data_ptr(),
                                         .weight_stride = weight.stride(0),
                                         .scale = static_cast<const float*>(scale.const_data_ptr()),
                                         .scale_stride = scale.stride(0),
                                         .rows = rows,
                                         .columns = columns,
                                         .out = out.mutable_data_ptr(),
                                         .out_dtype = dtype_of(out),
                                         .num_tokens = x.size(0),
                                         .num_outputs = weight.size(0),
                                         .depth = x.size(1)});
}

}  // namespace
}  // namespace minimax_m2

STABLE_TORCH_LIBRARY_IMPL(minimax_m2, CPU, m) { m.impl("fp8_linear", TORCH_BOX(&minimax_m2::fp8_linear)); }
