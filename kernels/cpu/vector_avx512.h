// AVX-512 without BF16: a bf16 product widens both operands and uses two fused multiply-adds.
#pragma once
#include "vector_avx512_float.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

inline Float even_values(Pairs a) { return {_mm512_castsi512_ps(_mm512_slli_epi32(a.v, 16))}; }
inline Float odd_values(Pairs a) {
  return {_mm512_castsi512_ps(_mm512_and_si512(a.v, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
inline Float dot(Float acc, Pairs a, Pairs b) {
  return fma(even_values(a), even_values(b), fma(odd_values(a), odd_values(b), acc));
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
