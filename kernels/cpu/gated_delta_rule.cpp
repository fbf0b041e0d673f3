// The gated delta rule; the recurrence itself stands in delta_rule.h.
#include "gated_delta_rule.h"

#include "delta_rule.h"

namespace minimax_m2::MINIMAX_M2_ISA {

void gated_delta_rule(const GatedDeltaRuleArgs& args) { run_sequences(args); }

}  // namespace minimax_m2::MINIMAX_M2_ISA
