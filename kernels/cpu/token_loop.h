// The loop over independent tokens: threads split tokens, never the work of one, so their number changes no bit.
#pragma once
#include "dispatch.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

template <class Body>
inline void for_tokens(int64_t num_tokens, int64_t values_each, Body body) {
  // Not an if clause of the pragma: that still builds a team of one.
  if (serial_tokens(num_tokens, values_each)) {
    for (int64_t token = 0; token < num_tokens; ++token) body(token);
    return;
  }
#pragma omp parallel for schedule(static)
  for (int64_t token = 0; token < num_tokens; ++token) body(token);
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
