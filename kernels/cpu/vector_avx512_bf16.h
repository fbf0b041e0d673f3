// AVX-512 with BF16 and VBMI: one instruction per two products. vdpbf16ps ignores MXCSR: it rounds to nearest even, takes
// denormal operands and gives denormal results as zero. It adds the odd product first, then the even one, as the other
// variants' dot does; whether the product is rounded in between is the processor's choice, so a contract counts
// one rounding per product and one per addition.
#pragma once
#include "vector_avx512_float.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

inline Float dot(Float acc, Pairs a, Pairs b) {
  return {_mm512_dpbf16_ps(acc.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
}

// vpdpbusd multiplies unsigned by signed bytes, and adds four products without saturation.
using Code = uint8_t;
struct Codes {
  __m512i v;
};

inline Codes load_codes(const int8_t* p) { return {_mm512_loadu_si512(p)}; }
inline Codes set1_codes(const Code* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  return {_mm512_set1_epi32(four)};
}
inline void store_codes(Code* p, Int a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v)); }
inline Int dot(Int acc, Codes a, Codes b) { return {_mm512_dpbusd_epi32(acc.v, a.v, b.v)}; }

[[maybe_unused]] constexpr ByteTable<128> LOW_BYTE = byte_table<128>(0), HIGH_BYTE = byte_table<128>(8);

inline __m512i looked_up(const ByteTable<128>& table, __m512i magnitude) {
  return _mm512_permutex2var_epi8(_mm512_load_si512(table.entry), magnitude, _mm512_load_si512(table.entry + 64));
}

[[maybe_unused]] constexpr bool CHEAP_WIDENING = true;

// The look-up ignores a code's sign, which the or then adds; unpacking in 128-bit lanes gives runs of eight.
inline void load_pairs(const Float8* p, Pairs& first, Pairs& second) {
  const __m512i code = _mm512_loadu_si512(p), sign = _mm512_and_si512(code, _mm512_set1_epi8(-128));
  const __m512i low = looked_up(LOW_BYTE, code), high = _mm512_or_si512(looked_up(HIGH_BYTE, code), sign);
  first.v = _mm512_unpacklo_epi8(low, high);
  second.v = _mm512_unpackhi_epi8(low, high);
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
