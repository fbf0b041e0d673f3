// Registers lm_head for the CPU. Shapes and dtypes were checked by lm_head.py.
#include "lm_head.h"

#include "binding.h"

namespace minimax_m2 {
namespace {

void lm_head(const Tensor& x, const Tensor& weight, std::optional<Tensor> rows, Tensor logits) {
  const int64_t bad =
      launch(lm_head_table, LmHeadArgs{.x = x.const_data_ptr(),
                                       .x_stride = x.stride(0),
                                       .weight = weight.const_data_ptr(),
                                       .weight_stride = weight.stride(0),
                                       .dtype = dtype_of(x),
                                       .rows = data_or_null<void>(rows),
                                       .rows_dtype = rows.has_value() ? dtype_of(*rows) : Dtype::int64,
                                       .logits = static_cast<float*>(logits.mutable_data_ptr()),
                                       .num_tokens = x.size(0),
                                       .num_rows = logits.size(0),
                                       .vocab_size = logits.size(1),
                                       .hidden = x.size(1)});
  if (bad >= 0) {
    reject("rows[" + std::to_string(bad) + "] is outside 0.." + std::to_string(x.size(0) - 1) +
           ", the rows of x; pass each sequence's last token");
  }
}

}  // namespace
}  // namespace minimax_m2

STABLE_TORCH_LIBRARY_IMPL(minimax_m2, CPU, m) { m.impl("lm_head", TORCH_BOX(&minimax_m2::lm_head)); }
