// e4m3 to bfloat16, exact, twice Float::N values at a time in 16-bit lanes: a third of the work of going through
// float32. Vector extensions of the compiler, because the vocabulary of vector.h has 32-bit lanes only.
#pragma once
#include "vector.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

typedef uint8_t Bytes __attribute__((vector_size(2 * Float::N)));
typedef uint16_t Words __attribute__((vector_size(4 * Float::N)));

// Moving the exponent's bias from 7 to 127 converts normal numbers; e4m3's denormals, the multiples of 2^-9 below
// 2^-6, are normal in bfloat16.
inline void widen(const Float8* p, BFloat16* to) {
  Bytes bytes;
  std::memcpy(&bytes, p, sizeof bytes);
  const Words code = __builtin_convertvector(bytes, Words), magnitude = code & 0x7f;
  const Words normal = (magnitude << 4) + 0x3c00;
  Words small = magnitude >= 4 ? (magnitude << 5) + 0x3b80 : (magnitude << 6) + 0x3b00;
  small = magnitude >= 2 ? small : magnitude * 0x3b00;
  Words value = magnitude >= 8 ? normal : small;
  value = magnitude == 0x7f ? value | 0x7fc0 : value;
  value |= (code & 0x80) << 8;
  std::memcpy(to, &value, sizeof value);
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
