// From hidden states to experts. The logits live in a buffer of the call, in float32, and never leave the caches for the
// batches that decode.
#include "router.h"

#include <vector>

#include "expert_choice.h"
#include "row_products.h"

namespace minimax_m2::MINIMAX_M2_ISA {

int64_t router(const RouterArgs& args) {
  const RouterGemmArgs& product = args.product;
  const int64_t num_experts = product.num_experts;
  std::vector<float> logits(static_cast<size_t>(product.num_tokens * num_experts));
  with_float(product.x_dtype, [&](auto* tag) {
    const auto* x = static_cast<const std::remove_pointer_t<decltype(tag)>*>(product.x);
    multiply_rows([&](int64_t t) { return x + t * product.x_stride; }, product.num_tokens, product.weight,
                  product.weight_stride, num_experts, product.hidden,
                  [&](int64_t t, int64_t e, int count, Float sums) {
                    store(logits.data() + t * num_experts + e, sums, count);
                  });
  });
  RoutingArgs choice = args.choice;
  choice.logits = logits.data();
  choice.logits_stride = num_experts;
  choice.logits_dtype = Dtype::float32;
  int64_t bad = -1;
  with_index(choice.ids_dtype,
             [&](auto* index) { bad = route<float, std::remove_pointer_t<decltype(index)>>(choice); });
  return bad;
}

}  // namespace minimax_m2::MINIMAX_M2_ISA
