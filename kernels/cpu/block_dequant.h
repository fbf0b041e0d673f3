// Arguments of the block_dequant kernel. Strides count elements.
#pragma once
#include "dtype.h"

namespace minimax_m2 {

struct BlockDequantArgs {
  const Float8* q;     // [B, N, H], last dimension contiguous
  const float* scale;  // [B, ceil(N / block_rows), ceil(H / block_columns)]
  int64_t batch_stride;
  int64_t row_stride;
  void* w;  // [B, N, H]
  Dtype dtype;
  int64_t batches;
  int64_t rows;
  int64_t columns;
  int64_t block_rows;
  int64_t block_columns;
};

}  // namespace minimax_m2

MINIMAX_M2_KERNEL(void, block_dequant, const BlockDequantArgs&)
