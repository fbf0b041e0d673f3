// Registers router for the CPU. Shapes and dtypes were checked by router.py.
#include "router.h"

#include "binding.h"

#include <algorithm>

namespace minimax_m2 {
namespace {

void router(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, int64_t top_k, bool renormalize,
            bool softmax, double scale, double eps, std::optional<Tensor> num_valid, Tensor weights, Tensor ids) {
  const int64_t num_tokens = x.size(0), num_experts = weight.size(0);
  const int64_t valid = num_valid.has_value() ? *data_or_null<int32_t>(num_valid) : num_tokens;
  if (valid < 0) reject("num_valid=" + std::to_string(valid) + " is negative; it counts the rows to route");
  const int64_t routed = std::min(valid, num_tokens);
  auto* out_weights = static_cast<float*>(weights.mutable_data_ptr());
  auto* out_ids = static_cast<char*>(ids.mutable_data_ptr());
  const int64_t bad = launch(router_table, RouterArgs{.product = {.x = x.const_data_ptr(),
                                                                  .x_stride = x.stride(0),
                                                                  .x_dtype = dtype_of(x),
                                                                  .weight = static_cast<const float*>(weight.const_data_ptr()),
                                                                  .weight_stride = weight.stride(0),
                                                                  .bias = nullptr,
                                                                  .logits = nullptr,
                                                                  .num_tokens = routed,
                                                                  .num_experts = num_experts,
                                                                  .hidden = x.size(1)},
                                                      .choice = {.logits = nullptr,
                                                                 .logits_stride = 0,
                                                                 .logits_dtype = Dtype::float32,
                                                                 .bias = data_or_null<float>(bias),
                                                                 .weights = out_weights,
                                                                 .ids = out_ids,
                                                                 .ids_dtype = dtype_of(ids),
                                                                 .num_tokens = routed,
                                                                 .num_experts = static_cast<int>(num_experts),
                                                                 .top_k = static_cast<int>(top_k),
                                                                 .softmax = softmax,
                                                                 .renormalize = renormalize,
                                                                 .scale = scale,
                                                                 .eps = eps}});
  if (bad >= 0) {
    reject("x row " + std::to_string(bad) +
           " has an expert whose score + bias is NaN; look for NaN in x, weight or bias (softmax: also +inf)");
  }
  const int64_t padding = (num_tokens - routed) * top_k, id_bytes = ids.element_size();
  std::fill_n(out_weights + routed * top_k, padding, 0.0f);
  std::fill_n(out_ids + routed * top_k * id_bytes, padding * id_bytes, '\xff');  // all bits set: -1
}

}  // namespace
}  // namespace minimax_m2

STABLE_TORCH_LIBRARY_IMPL(minimax_m2, CPU, m) { m.impl("router", TORCH_BOX(&minimax_m2::router)); }
