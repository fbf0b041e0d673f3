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

// The bytes of an e4m3 magnitude's bfloat16, looked up by the magnitude: 128 entries in two registers.
struct ByteTable {
  alignas(64) uint8_t entry[128];
  __m512i look_up(__m512i magnitude) const {
    return _mm512_permutex2var_epi8(_mm512_load_si512(entry), magnitude, _mm512_load_si512(entry + 64));
  }
};
constexpr ByteTable byte_table(int shift) {
  ByteTable table{};
  for (int m = 0; m < 128; ++m) {
    int code = (m << 4) + 0x3c00;
    if (m < 8) code = m >= 4 ? (m << 5) + 0x3b80 : m >= 2 ? (m << 6) + 0x3b00 : m * 0x3b00;
    if (m == 127) code |= 0x7fc0;
    table.entry[m] = static_cast<uint8_t>(code >> shift);
  }
  return table;
}
[[maybe_unused]] constexpr ByteTable LOW_BYTE = byte_table(0), HIGH_BYTE = byte_table(8);

// The look-up ignores a code's sign, which the or then adds; unpacking in 128-bit lanes gives runs of eight.
inline void load_pairs(const Float8* p, Pairs& first, Pairs& second) {
  const __m512i code = _mm512_loadu_si512(p), sign = _mm512_and_si512(code, _mm512_set1_epi8(-128));
  const __m512i low = LOW_BYTE.look_up(code), high = _mm512_or_si512(HIGH_BYTE.look_up(code), sign);
  first.v = _mm512_unpacklo_epi8(low, high);
  second.v = _mm512_unpackhi_epi8(low, high);
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
