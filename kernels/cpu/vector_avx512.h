// AVX-512 without BF16 and VBMI: a bf16 product widens both operands and uses two fused multiply-adds.
#pragma once
#include "vector_avx512_float.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

inline Float dot(Float acc, Pairs a, Pairs b) {
  return fma(even_values(a), even_values(b), fma(odd_values(a), odd_values(b), acc));
}

// Products of bytes saturate here, so codes are widened to 16 bits: of each four, the even and the odd ones.
using Code = int16_t;
struct Codes {
  __m512i even, odd;
};

inline Codes load_codes(const int8_t* p) {
  const __m512i four = _mm512_loadu_si512(p);
  return {_mm512_srai_epi16(_mm512_slli_epi16(four, 8), 8), _mm512_srai_epi16(four, 8)};
}
inline Codes set1_codes(const Code* p) {
  int32_t pairs[2];
  std::memcpy(pairs, p, sizeof pairs);
  return {_mm512_set1_epi32(pairs[0]), _mm512_set1_epi32(pairs[1])};
}
inline void store_codes(Code* p, Int a) {
  const __m256i words = _mm512_cvtepi32_epi16(a.v);
  const __m256i sorted = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(words, 0xd8), 0xd8);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), sorted);
}
inline Int dot(Int acc, Codes a, Codes b) {
  return acc + Int{_mm512_madd_epi16(a.even, b.even)} + Int{_mm512_madd_epi16(a.odd, b.odd)};
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
