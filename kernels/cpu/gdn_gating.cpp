// Gates of a gated delta net, which gates.h computes.
#include "gdn_gating.h"

#include "gates.h"

namespace minimax_m2::MINIMAX_M2_ISA {

void gdn_gating(const GdnGatingArgs& args) { gate(args); }

}  // namespace minimax_m2::MINIMAX_M2_ISA
