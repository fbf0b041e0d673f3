// Quantises one group of values: a scale that maps the largest magnitude to the largest code, then one rounding each.
#pragma once
#include "row_vectors.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

constexpr float SMALLEST_ABSMAX = 1e-10f;
constexpr float LARGEST_E4M3 = 448.0f;
constexpr float LARGEST_INT8 = 127.0f;

// Largest magnitude of at(0..count), NaN if one of them is.
template <class At>
inline float absmax(int64_t count, At at) {
  Float top = zero();
  Mask bad = first_lanes(0);
  for_vectors(count, [&](int64_t i, auto... n) {
    const Float magnitude = abs(at(i, n...));
    bad = bad | is_nan(magnitude);
    top = max(top, magnitude);
  });
  return bits(bad) ? std::numeric_limits<float>::quiet_NaN() : reduce_max(top);
}

// Divided, not multiplied by a reciprocal: the quotient of two float32 numbers rounds once.
template <class At>
inline float group_scale(int64_t count, float largest, At at) {
  const float top = absmax(count, at);
  return (top < SMALLEST_ABSMAX ? SMALLEST_ABSMAX : top) / largest;
}

// Of a positive normal number; NaN stays NaN.
inline float power_of_two_above(float x) {
  return x != x ? x : float_of((bits_of(x) + 0x007fffffu) & 0x7f800000u);
}

inline void store_code(Float8* q, Float quotient) { store(q, quotient); }
inline void store_code(Float8* q, Float quotient, int n) { store(q, quotient, n); }
inline void store_code(int8_t* q, Float quotient, int n = Float::N) {
  int32_t code[Float::N];
  store_int(code, to_int(max(set1(-LARGEST_INT8), min(set1(LARGEST_INT8), quotient))));
  for (int lane = 0; lane < n; ++lane) q[lane] = static_cast<int8_t>(code[lane]);
}

template <class Code, class At>
inline void quantise(int64_t count, float scale, Code* q, At at) {
  const Float divisor = set1(scale);
  for_vectors(count, [&](int64_t i, auto... n) { store_code(q + i, at(i, n...) / divisor, n...); });
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
