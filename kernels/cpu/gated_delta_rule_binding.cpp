// Registers gated_delta_rule for the CPU. Slots and starts are checked before anything is written.
#include "gated_delta_rule.h"

#include "delta_rule_binding.h"

namespace minimax_m2 {
namespace {

// As schema/gated_delta_rule.py says.
bool accepts(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g, const Tensor& beta,
             const Tensor& state, const Tensor& state_index, const Tensor& query_start, const Tensor& o) {
  if (!accepts_heads(q, k, v, state, state_index, query_start, o)) return false;
  const int64_t T = q.size(0), Hv = v.size(1);
  const bool wide_beta = beta.scalar_type() == ScalarType::Float;
  return is_token_rows(g, ScalarType::Float, {T, Hv}) &&
         is_token_rows(beta, wide_beta ? ScalarType::Float : q.scalar_type(), {T, Hv});
}

void gated_delta_rule(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g, const Tensor& beta,
                      Tensor state, const Tensor& state_index, const Tensor& query_start, double scale, bool l2norm,
                      Tensor o) {
  require(accepts(q, k, v, g, beta, state, state_index, query_start, o), "gated_delta_rule");
  const Sequences sequences = sequences_of(q, state, state_index, query_start);
  GatedDeltaRuleArgs args = recurrence_args(q, k, v, state, sequences, scale, l2norm, o);
  args.g = static_cast<const float*>(g.const_data_ptr());
  args.g_stride = g.stride(0);
  args.beta = beta.const_data_ptr();
  args.beta_stride = beta.stride(0);
  args.beta_dtype = dtype_of(beta);
  launch(gated_delta_rule_table, args);
}

}  // namespace
}  // namespace minimax_m2

STABLE_TORCH_LIBRARY_IMPL(minimax_m2, CPU, m) { m.impl("gated_delta_rule", TORCH_BOX(&minimax_m2::gated_delta_rule)); }
