// AVX-512 without BF16: a bf16 product widens both operands and uses two fused multiply-adds.
#pragma once
#include "vector_avx512_float.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

inline Float dot(Float acc, Pairs a, Pairs b) {
  return fma(even_values(a), even_values(b), fma(odd_values(a), odd_values(b), acc));
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA

#include "float8_words.h"
