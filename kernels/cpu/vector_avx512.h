// AVX-512 without BF16 and VBMI: a bf16 product widens both operands and uses two fused multiply-adds.
#pragma once
#include "vector_avx512_float.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

inline Float dot(Float acc, Pairs a, Pairs b) {
  return fma(even_values(a), even_values(b), fma(odd_values(a), odd_values(b), acc));
}

[[maybe_unused]] constexpr ByteTable<16> LOW_BYTE = byte_table<16>(0), HIGH_BYTE = byte_table<16>(8);

inline __m512i looked_up(const ByteTable<16>& table, __m512i otherwise, __mmask64 small, __m512i magnitude) {
  const __m512i entries = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(table.entry)));
  return _mm512_mask_shuffle_epi8(otherwise, small, entries, magnitude);
}

[[maybe_unused]] constexpr bool CHEAP_WIDENING = false;

// Moving the exponent's bias from 7 to 127 converts magnitudes from 16 on; those below are looked up.
inline void load_pairs(const Float8* p, Pairs& first, Pairs& second) {
  const __m512i code = _mm512_loadu_si512(p), magnitude = _mm512_and_si512(code, _mm512_set1_epi8(0x7f));
  const __mmask64 small = _mm512_cmplt_epu8_mask(magnitude, _mm512_set1_epi8(16));
  __m512i low = _mm512_and_si512(_mm512_slli_epi16(magnitude, 4), _mm512_set1_epi8(-16));
  __m512i high = _mm512_and_si512(_mm512_srli_epi16(magnitude, 4), _mm512_set1_epi8(7));
  high = _mm512_add_epi8(high, _mm512_set1_epi8(0x3c));
  high = _mm512_mask_mov_epi8(high, _mm512_cmpeq_epi8_mask(magnitude, _mm512_set1_epi8(0x7f)), _mm512_set1_epi8(0x7f));
  low = looked_up(LOW_BYTE, low, small, magnitude);
  high = _mm512_or_si512(looked_up(HIGH_BYTE, high, small, magnitude), _mm512_andnot_si512(_mm512_set1_epi8(0x7f), code));
  first.v = _mm512_unpacklo_epi8(low, high);
  second.v = _mm512_unpackhi_epi8(low, high);
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
