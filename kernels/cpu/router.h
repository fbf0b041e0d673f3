// Arguments of the router: its product, then the choice, whose logits the kernel fills in.
#pragma once
#include "router_gemm.h"
#include "routing.h"

namespace minimax_m2 {

struct RouterArgs {
  RouterGemmArgs product;
  RoutingArgs choice;
};

}  // namespace minimax_m2

// Returns the first row whose data is not acceptable, or -1.
MINIMAX_M2_KERNEL(int64_t, router, const RouterArgs&)
