// Registers embedding for the CPU. Shapes and dtypes were checked by embedding.py.
#include "embedding.h"

#include "binding.h"

namespace minimax_m2 {
namespace {

void embedding(const Tensor& ids, const Tensor& weight, int64_t vocab_start, Tensor out) {
  const int64_t bytes = weight.element_size();
  launch(embedding_table, EmbeddingArgs{.ids = ids.const_data_ptr(),
                                        .ids_dtype = dtype_of(ids),
                                        .weight = static_cast<const char*>(weight.const_data_ptr()),
                                        .weight_stride_bytes = weight.stride(0) * bytes,
                                        .num_rows = weight.size(0),
                                        .vocab_start = vocab_start,
                                        .out = static_cast<char*>(out.mutable_data_ptr()),
                                        .row_bytes = weight.size(1) * bytes,
                                        .num_tokens = ids.size(0)});
}

}  // namespace
}  // namespace minimax_m2

STABLE_TORCH_LIBRARY_IMPL(minimax_m2, CPU, m) { m.impl("embedding", TORCH_BOX(&minimax_m2::embedding)); }
