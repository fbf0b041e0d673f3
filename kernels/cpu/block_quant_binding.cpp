// Registers block_quant for the CPU. Shapes and dtypes were checked by block_quant.py.
#include "block_quant.h"

#include "binding.h"

namespace minimax_m2 {
namespace {

void block_quant(const Tensor& x, int64_t group, bool power_of_two, Tensor q, Tensor scale) {
  launch(block_quant_table, BlockQuantArgs{.x = x.const_data_ptr(),
                                           .x_stride = x.stride(0),
                                           .dtype = dtype_of(x),
                                           .q = static_cast<Float8*>(q.mutable_data_ptr()),
                                           .scale = static_cast<float*>(scale.mutable_data_ptr()),
                                           .num_tokens = x.size(0),
                                           .hidden = x.size(1),
                                           .group = group,
                                           .power_of_two = power_of_two});
}

}  // namespace
}  // namespace minimax_m2

STABLE_TORCH_LIBRARY_IMPL(minimax_m2, CPU, m) { m.impl("block_quant", TORCH_BOX(&minimax_m2::block_quant)); }
