// e4m3 to bfloat16, exact, in 16-bit lanes: a third of the work of going through float32. Vector extensions of the
// compiler, because the vocabulary of vector.h has 32-bit lanes only. Included by the variants below AVX-512.
#pragma once
#include "scalar.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

[[maybe_unused]] constexpr bool CHEAP_WIDENING = false;

typedef uint8_t Bytes __attribute__((vector_size(2 * Float::N)));
typedef uint16_t Words __attribute__((vector_size(4 * Float::N)));

// Moving the exponent's bias from 7 to 127 converts normal numbers; e4m3's denormals, the multiples of 2^-9 below
// 2^-6, are normal in bfloat16.
inline Pairs widened(Bytes bytes) {
  const Words code = __builtin_convertvector(bytes, Words), magnitude = code & 0x7f;
  const Words normal = (magnitude << 4) + 0x3c00;
  Words small = magnitude >= 4 ? (magnitude << 5) + 0x3b80 : (magnitude << 6) + 0x3b00;
  small = magnitude >= 2 ? small : magnitude * 0x3b00;
  Words value = magnitude >= 8 ? normal : small;
  value = magnitude == 0x7f ? value | 0x7fc0 : value;
  value |= (code & 0x80) << 8;
  Pairs pairs;
  std::memcpy(&pairs, &value, sizeof value);
  return pairs;
}

inline void load_pairs(const Float8* p, Pairs& first, Pairs& second) {
  Bytes each[2];
  for (int i = 0; i < 4 * Float::N; i += 8) std::memcpy(reinterpret_cast<char*>(each + i / 8 % 2) + i / 16 * 8, p + i, 8);
  first = widened(each[0]);
  second = widened(each[1]);
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
