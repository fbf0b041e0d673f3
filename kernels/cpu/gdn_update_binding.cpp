// Registers gdn_update for the CPU. Slots and starts are checked before anything is written.
#include "gdn_update.h"

#include "delta_rule_binding.h"
#include "gates_binding.h"

namespace minimax_m2 {
namespace {

// As schema/gdn_update.py says.
bool accepts(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& a_log, const Tensor& a, const Tensor& b,
             const Tensor& dt_bias, const Tensor& state, const Tensor& state_index, const Tensor& query_start,
             const Tensor& o) {
  return accepts_heads(q, k, v, state, state_index, query_start, o) && accepts_gates(a_log, a, b, dt_bias) &&
         a.scalar_type() == q.scalar_type() && a.size(0) == q.size(0) && a.size(1) == v.size(1);
}

void gdn_update(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& a_log, const Tensor& a,
                const Tensor& b, const Tensor& dt_bias, Tensor state, const Tensor& state_index,
                const Tensor& query_start, double scale, bool l2norm, Tensor o) {
  require(accepts(q, k, v, a_log, a, b, dt_bias, state, state_index, query_start, o), "gdn_update");
  const Sequences sequences = sequences_of(q, state, state_index, query_start);
  launch(gdn_update_table,
         GdnUpdateArgs{.gates = gates_args(a_log, a, b, dt_bias),
                       .recurrence = recurrence_args(q, k, v, state, sequences, scale, l2norm, o)});
}

}  // namespace
}  // namespace minimax_m2

STABLE_TORCH_LIBRARY_IMPL(minimax_m2, CPU, m) { m.impl("gdn_update", TORCH_BOX(&minimax_m2::gdn_update)); }
