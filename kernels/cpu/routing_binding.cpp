// Registers routing, pack_routing and unpack_routing for the CPU. The packed format's arguments were checked by routing.py.
#include "routing.h"

#include "argument_checks.h"

#include <algorithm>

namespace minimax_m2 {
namespace {

// As schema/routing.py says.
bool accepts(const Tensor& logits, const std::optional<Tensor>& bias, int64_t top_k,
             const std::optional<Tensor>& num_valid, const Tensor& weights, const Tensor& ids) {
  if (!is_float(logits) || !has_shape(logits, {ANY, ANY}) || !has_rows(logits)) return false;
  const int64_t num_tokens = logits.size(0), num_experts = logits.size(1);
  return within(num_experts, 1, MAX_EXPERTS) && within(top_k, 1, std::min<int64_t>(MAX_TOP_K, num_experts)) &&
         (!bias || is_dense(*bias, ScalarType::Float, {num_experts})) &&
         (!num_valid || (num_valid->scalar_type() == ScalarType::Int && num_valid->numel() == 1)) &&
         is_dense(weights, ScalarType::Float, {num_tokens, top_k}) && is_index(ids) &&
         is_dense(ids, ids.scalar_type(), {num_tokens, top_k});
}

void routing(const Tensor& logits, std::optional<Tensor> bias, int64_t top_k, Tensor weights, Tensor ids,
             bool renormalize, bool softmax, double scale, double eps, std::optional<Tensor> num_valid) {
  require(accepts(logits, bias, top_k, num_valid, weights, ids), "routing");
  const int64_t num_tokens = logits.size(0);
  int64_t valid = num_tokens;
  if (num_valid.has_value()) {
    valid = *data_or_null<int32_t>(num_valid);
    if (valid < 0) reject("num_valid=" + std::to_string(valid) + " is negative; it counts the rows to route");
    valid = std::min(valid, num_tokens);
  }
  auto* out_weights = static_cast<float*>(weights.mutable_data_ptr());
  auto* out_ids = static_cast<char*>(ids.mutable_data_ptr());
  const int64_t id_bytes = ids.element_size();
  const RoutingArgs args{.logits = logits.const_data_ptr(),
                         .logits_stride = logits.stride(0),
                         .logits_dtype = dtype_of(logits),
                         .bias = data_or_null<float>(bias),
                         .weights = out_weights,
                         .ids = out_ids,
                         .ids_dtype = dtype_of(ids),
                         .num_tokens = valid,
                         .num_experts = static_cast<int>(logits.size(1)),
                         .top_k = static_cast<int>(top_k),
                         .softmax = softmax,
                         .renormalize = renormalize,
                         .scale = scale,
                         .eps = eps};
  const int64_t bad = launch(routing_table, args);
  if (bad >= 0) {
    reject("logits row " + std::to_string(bad) +
           " has an expert whose score + bias is NaN; look for NaN in logits or bias (softmax: also +inf)");
  }
  const int64_t padding = (num_tokens - valid) * top_k;
  std::fill_n(out_weights + valid * top_k, padding, 0.0f);
  std::fill_n(out_ids + valid * top_k * id_bytes, padding * id_bytes, '\xff');  // all bits set: -1
}

PackArgs pack_args(const Tensor& weights, const Tensor& ids, const Tensor& packed, int64_t expert_start) {
  return {.weights = static_cast<float*>(weights.data_ptr()),
          .ids = ids.data_ptr(),
          .ids_dtype = dtype_of(ids),
          .packed = static_cast<int32_t*>(packed.data_ptr()),
          .count = packed.numel(),
          .expert_start = expert_start};
}

void pack_routing(const Tensor& weights, const Tensor& ids, int64_t expert_start, Tensor packed) {
  const int64_t bad = launch(pack_routing_table, pack_args(weights, ids, packed, expert_start));
  if (bad >= 0) {
    reject("ids element " + std::to_string(bad) + " is below -1 or more than 32767 above expert_start=" +
           std::to_string(expert_start) + "; the packed id field has 16 bits");
  }
}

void unpack_routing(const Tensor& packed, int64_t expert_start, Tensor weights, Tensor ids) {
  launch(unpack_routing_table, pack_args(weights, ids, packed, expert_start));
}

}  // namespace
}  // namespace minimax_m2

STABLE_TORCH_LIBRARY_IMPL(minimax_m2, CPU, m) {
  m.impl("routing", TORCH_BOX(&minimax_m2::routing));
  m.impl("pack_routing", TORCH_BOX(&minimax_m2::pack_routing));
  m.impl("unpack_routing", TORCH_BOX(&minimax_m2::unpack_routing));
}
