// Arguments of the gated delta rule with its gates: both parts', the gates' results filled in by the kernel.
#pragma once
#include "gated_delta_rule.h"
#include "gdn_gating.h"

namespace minimax_m2 {

struct GdnUpdateArgs {
  GdnGatingArgs gates;
  GatedDeltaRuleArgs recurrence;
};

}  // namespace minimax_m2

MINIMAX_M2_KERNEL(void, gdn_update, const GdnUpdateArgs&)
