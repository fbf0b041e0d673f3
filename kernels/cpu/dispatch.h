// Every choice between code paths that a launch makes after the instruction set's: pure functions of shape and dtype, one
// line each. `m2check doctor` prints them as they stand here; suites/kernels/test_dispatch.py holds their truth tables.
#pragma once
#include "dtype.h"

namespace minimax_m2 {

// A fork-join costs about 1 us, so little work runs on the calling thread; the cost is counted in copied values.
constexpr bool serial_tokens(int64_t tokens, int64_t values_each) { return tokens == 1 || tokens * values_each < 32768; }
constexpr bool serial_logits(int64_t tokens, int64_t experts) { return tokens * experts < 8192; }
constexpr bool serial_products(int64_t products) { return products < 65536; }

// AMX multiplies tiles of bf16; int8 tiles serve no op yet.
constexpr bool has_tile_product(Dtype dtype) { return dtype == Dtype::bfloat16; }

}  // namespace minimax_m2
