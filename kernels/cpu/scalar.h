// Conversions between storage types and float, one value at a time: the portable vector's primitives,
// and the tail of narrow formats elsewhere. Bit-identical to the vector ones.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "dtype.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

inline uint32_t bits_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, sizeof u);
  return u;
}
inline float float_of(uint32_t u) {
  float x;
  std::memcpy(&x, &u, sizeof x);
  return x;
}

inline float to_float(float x) { return x; }
inline float to_float(BFloat16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }
inline float to_float(Half x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude >= 0x0400u) return float_of(sign | ((magnitude << 13) + (112u << 23)));
  return float_of(sign | bits_of(static_cast<float>(magnitude) * 0x1p-24f));
}
inline float to_float(Float8 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x80u) << 24;
  const uint32_t magnitude = x.bits & 0x7fu;
  if (magnitude == 0x7fu) return float_of(sign | 0x7fc00000u);
  if (magnitude >= 0x08u) return float_of(sign | ((magnitude << 20) + (120u << 23)));
  return float_of(sign | bits_of(static_cast<float>(magnitude) * 0x1p-9f));
}

inline void round_to(float* p, float x) { *p = x; }
inline void round_to(BFloat16* p, float x) {
  const uint32_t u = bits_of(x);
  p->bits = std::isnan(x) ? static_cast<uint16_t>(u >> 16 | 0x40u)
                          : static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}
inline void round_to(Half* p, float x) {
  const uint32_t u = bits_of(x);
  const uint16_t sign = static_cast<uint16_t>(u >> 16 & 0x8000u);
  const uint32_t magnitude = u & 0x7fffffffu;
  uint32_t code;
  if (magnitude > 0x7f800000u) {
    code = 0x7e00u | (magnitude >> 13 & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    code = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {
    code = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  } else {  // adding 0.5 puts the fp16 denormal's unit at the last place, so the adder rounds
    code = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  }
  p->bits = static_cast<uint16_t>(sign | code);
}
inline void round_to(Float8* p, float x) {
  const uint32_t u = bits_of(x);
  const uint8_t sign = static_cast<uint8_t>(u >> 24 & 0x80u);
  const uint32_t magnitude = u & 0x7fffffffu;
  uint32_t code;
  if (magnitude > 0x7f800000u) {
    code = 0x7fu;
  } else if (magnitude >= 0x43e00000u) {  // 448 and above saturate
    code = 0x7eu;
  } else if (magnitude >= 0x3c800000u) {
    code = (magnitude - (120u << 23) + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20;
  } else {  // 2^14 has its last place at 2^-9, the e4m3 denormals' unit
    code = bits_of(float_of(magnitude) + 16384.0f) - bits_of(16384.0f);
  }
  p->bits = static_cast<uint8_t>(sign | code);
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
