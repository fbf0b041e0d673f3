// Registers block_dequant for the CPU. Shapes and dtypes were checked by block_dequant.py.
#include "block_dequant.h"

#include "binding.h"

namespace minimax_m2 {
namespace {

void block_dequant(const Tensor& q, const Tensor& scale, int64_t block_rows, int64_t block_columns, Tensor w) {
  const bool batched = q.dim() == 3;
  launch(block_dequant_table, BlockDequantArgs{.q = static_cast<const Float8*>(q.const_data_ptr()),
                                               .scale = static_cast<const float*>(scale.const_data_ptr()),
                                               .batch_stride = batched ? q.stride(0) : 0,
                                               .row_stride = q.stride(batched ? 1 : 0),
                                               .w = w.mutable_data_ptr(),
                                               .dtype = dtype_of(w),
                                               .batches = batched ? q.size(0) : 1,
                                               .rows = q.size(batched ? 1 : 0),
                                               .columns = q.size(batched ? 2 : 1),
                                               .block_rows = block_rows,
                                               .block_columns = block_columns});
}

}  // namespace
}  // namespace minimax_m2

STABLE_TORCH_LIBRARY_IMPL(minimax_m2, CPU, m) { m.impl("block_dequant", TORCH_BOX(&minimax_m2::block_dequant)); }
