// Registers embedding for the CPU.
#include "embedding.h"

#include "argument_checks.h"

namespace minimax_m2 {
namespace {

void embedding(const Tensor& ids, const Tensor& weight, int64_t vocab_start, Tensor out) {
  // As schema/embedding.py says.
  require(is_index(ids) && is_dense(ids, ids.scalar_type(), {ANY}) && is_float(weight) && has_shape(weight, {ANY, ANY}) &&
              has_rows(weight) && within(vocab_start, 0, (int64_t{1} << 31) - 1) &&
              is_dense(out, weight.scalar_type(), {ids.size(0), weight.size(1)}),
          "embedding");
  if (out.numel() == 0) return;
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
