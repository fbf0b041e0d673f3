// Gates, then the recurrence. The gates live in a buffer of the call, in float32: eight bytes a token and head beside the
// state's tens of kilobytes.
#include "gdn_update.h"

#include "delta_rule.h"
#include "gates.h"

namespace minimax_m2::MINIMAX_M2_ISA {

void gdn_update(const GdnUpdateArgs& args) {
  const size_t count = static_cast<size_t>(args.gates.num_tokens * args.gates.num_heads);
  std::vector<float> g(count), beta(count);
  GdnGatingArgs gates = args.gates;
  gates.g = g.data();
  gates.beta = beta.data();
  gates.beta_dtype = Dtype::float32;
  gate(gates);
  GatedDeltaRuleArgs recurrence = args.recurrence;
  recurrence.g = g.data();
  recurrence.g_stride = gates.num_heads;
  recurrence.beta = beta.data();
  recurrence.beta_stride = gates.num_heads;
  recurrence.beta_dtype = Dtype::float32;
  run_sequences(recurrence);
}

}  // namespace minimax_m2::MINIMAX_M2_ISA
