// Registers gdn_gating for the CPU.
#include "gdn_gating.h"

#include "gates_binding.h"

namespace minimax_m2 {
namespace {

// As schema/gdn_gating.py says.
bool accepts(const Tensor& a_log, const Tensor& a, const Tensor& b, const Tensor& dt_bias, const Tensor& g,
             const Tensor& beta) {
  return accepts_gates(a_log, a, b, dt_bias) && is_dense(g, ScalarType::Float, {a.size(0), a.size(1)}) &&
         is_dense(beta, a.scalar_type(), {a.size(0), a.size(1)});
}

void gdn_gating(const Tensor& a_log, const Tensor& a, const Tensor& b, const Tensor& dt_bias, Tensor g, Tensor beta) {
  require(accepts(a_log, a, b, dt_bias, g, beta), "gdn_gating");
  GdnGatingArgs args = gates_args(a_log, a, b, dt_bias);
  args.g = static_cast<float*>(g.mutable_data_ptr());
  args.beta = beta.mutable_data_ptr();
  launch(gdn_gating_table, args);
}

}  // namespace
}  // namespace minimax_m2

STABLE_TORCH_LIBRARY_IMPL(minimax_m2, CPU, m) { m.impl("gdn_gating", TORCH_BOX(&minimax_m2::gdn_gating)); }
