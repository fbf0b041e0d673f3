// Arguments of the embedding kernel: rows are bytes to copy.
#pragma once
#include "dtype.h"

namespace minimax_m2 {

struct EmbeddingArgs {
  const void* ids;  // [T]
  Dtype ids_dtype;
  const char* weight;  // [V, H], last dimension contiguous
  int64_t weight_stride_bytes;
  int64_t num_rows;     // V of this shard
  int64_t vocab_start;  // id of row 0
  char* out;            // [T, H], contiguous
  int64_t row_bytes;
  int64_t num_tokens;
};

}  // namespace minimax_m2

MINIMAX_M2_KERNEL(void, embedding, const EmbeddingArgs&)
