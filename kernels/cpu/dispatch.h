// Every choice between code paths that a launch makes after the instruction set's: pure functions of shape and dtype, one
// line each. `m2check doctor` prints them as they stand here; suites/kernels/test_dispatch.py holds their truth tables.
#pragma once
#include "dtype.h"

namespace minimax_m2 {

// A fork-join costs about 1 us, so little work runs on the calling thread; the cost is counted in copied values.
constexpr bool serial_tokens(int64_t tokens, int64_t values_each) { return tokens == 1 || tokens * values_each < 32768; }
constexpr bool serial_logits(int64_t tokens, int64_t experts) { return tokens * experts < 8192; }
constexpr bool serial_products(int64_t products) { return products < 65536; }

// Experts of int8 multiply codes of their activations, too; whoever holds other weights multiplies these as they are.
constexpr bool quantises_activations(Dtype weight) { return weight == Dtype::int8; }
// VNNI multiplies unsigned by signed bytes, so activations' codes are held 128 too large, which each sum then takes back.
// Without it bytes are widened to 16 bits.
constexpr bool multiplies_bytes(Isa isa) { return isa >= Isa::avx512_bf16; }

// AMX multiplies tiles of bf16; int8 tiles serve no op yet.
constexpr bool has_tile_product(Dtype dtype) { return dtype == Dtype::bfloat16; }

}  // namespace minimax_m2
