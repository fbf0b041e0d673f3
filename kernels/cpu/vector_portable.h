// Vector primitives in plain C++: four lanes, no intrinsics, any processor. Meant to be right, not fast.
// fma rounds twice here (a library call per lane otherwise); budgets count the second rounding.
#pragma once
#include "scalar.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

struct Float {
  static constexpr int N = 4;
  float lane[N];
};
struct Int {
  int32_t lane[Float::N];
};
struct Mask {
  bool lane[Float::N];
};
struct Pairs {
  BFloat16 lane[2 * Float::N];
};

template <class Out, class Body>
inline Out each(Body body) {
  Out out;
  for (int i = 0; i < Float::N; ++i) out.lane[i] = body(i);
  return out;
}

inline Float set1(float x) { return each<Float>([&](int) { return x; }); }
inline Float zero() { return set1(0.0f); }
inline Int set1_int(int32_t x) { return each<Int>([&](int) { return x; }); }
inline Int iota() { return each<Int>([](int i) { return i; }); }

template <class T>
inline Float load(const T* p) { return each<Float>([&](int i) { return to_float(p[i]); }); }
template <class T>
inline Float load(const T* p, int n) { return each<Float>([&](int i) { return i < n ? to_float(p[i]) : 0.0f; }); }
template <class T>
inline void store(T* p, Float v) { for (int i = 0; i < Float::N; ++i) round_to(p + i, v.lane[i]); }
template <class T>
inline void store(T* p, Float v, int n) { for (int i = 0; i < n; ++i) round_to(p + i, v.lane[i]); }
inline Int load_int(const int32_t* p) { return each<Int>([&](int i) { return p[i]; }); }
inline void store_int(int32_t* p, Int v) { std::memcpy(p, v.lane, sizeof v.lane); }

inline Float operator+(Float a, Float b) { return each<Float>([&](int i) { return a.lane[i] + b.lane[i]; }); }
inline Float operator-(Float a, Float b) { return each<Float>([&](int i) { return a.lane[i] - b.lane[i]; }); }
inline Float operator*(Float a, Float b) { return each<Float>([&](int i) { return a.lane[i] * b.lane[i]; }); }
inline Float operator/(Float a, Float b) { return each<Float>([&](int i) { return a.lane[i] / b.lane[i]; }); }
inline Float fma(Float a, Float b, Float c) { return a * b + c; }
inline Float fnma(Float a, Float b, Float c) { return c - a * b; }
inline Float min(Float a, Float b) {
  return each<Float>([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Float max(Float a, Float b) {
  return each<Float>([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Float abs(Float a) { return each<Float>([&](int i) { return std::fabs(a.lane[i]); }); }
inline Float neg(Float a) { return each<Float>([&](int i) { return -a.lane[i]; }); }
inline Float sqrt(Float a) { return each<Float>([&](int i) { return std::sqrt(a.lane[i]); }); }
inline Float round(Float a) { return each<Float>([&](int i) { return std::nearbyint(a.lane[i]); }); }

inline Mask lt(Float a, Float b) { return each<Mask>([&](int i) { return a.lane[i] < b.lane[i]; }); }
inline Mask le(Float a, Float b) { return each<Mask>([&](int i) { return a.lane[i] <= b.lane[i]; }); }
inline Mask gt(Float a, Float b) { return lt(b, a); }
inline Mask ge(Float a, Float b) { return le(b, a); }
inline Mask eq(Float a, Float b) { return each<Mask>([&](int i) { return a.lane[i] == b.lane[i]; }); }
inline Mask is_nan(Float a) { return each<Mask>([&](int i) { return a.lane[i] != a.lane[i]; }); }
inline Mask eq(Int a, Int b) { return each<Mask>([&](int i) { return a.lane[i] == b.lane[i]; }); }
inline Mask lt(Int a, Int b) { return each<Mask>([&](int i) { return a.lane[i] < b.lane[i]; }); }
inline Mask operator&(Mask a, Mask b) { return each<Mask>([&](int i) { return a.lane[i] && b.lane[i]; }); }
inline Mask operator|(Mask a, Mask b) { return each<Mask>([&](int i) { return a.lane[i] || b.lane[i]; }); }
inline Mask first_lanes(int n) { return each<Mask>([&](int i) { return i < n; }); }
inline Float blend(Mask m, Float a, Float b) {
  return each<Float>([&](int i) { return m.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Int blend(Mask m, Int a, Int b) {
  return each<Int>([&](int i) { return m.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline uint32_t bits(Mask m) {
  uint32_t out = 0;
  for (int i = 0; i < Float::N; ++i) out |= static_cast<uint32_t>(m.lane[i]) << i;
  return out;
}

inline Int operator+(Int a, Int b) { return each<Int>([&](int i) { return a.lane[i] + b.lane[i]; }); }
inline Int operator-(Int a, Int b) { return each<Int>([&](int i) { return a.lane[i] - b.lane[i]; }); }
inline Int operator&(Int a, Int b) { return each<Int>([&](int i) { return a.lane[i] & b.lane[i]; }); }
inline Int operator|(Int a, Int b) { return each<Int>([&](int i) { return a.lane[i] | b.lane[i]; }); }
template <int K>
inline Int shl(Int a) { return each<Int>([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.lane[i]) << K); }); }
template <int K>
inline Int shr(Int a) { return each<Int>([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.lane[i]) >> K); }); }
inline Int to_int(Float a) { return each<Int>([&](int i) { return static_cast<int32_t>(std::nearbyint(a.lane[i])); }); }
inline Float to_float(Int a) { return each<Float>([&](int i) { return static_cast<float>(a.lane[i]); }); }
inline Int as_int(Float a) { return each<Int>([&](int i) { return static_cast<int32_t>(bits_of(a.lane[i])); }); }
inline Float as_float(Int a) { return each<Float>([&](int i) { return float_of(static_cast<uint32_t>(a.lane[i])); }); }

// p * 2^n for integer-valued n in [-151, 129], in two exact steps so that a denormal is rounded once.
inline Float scale_by_power_of_two(Float p, Float n) {
  return each<Float>([&](int i) {
    const int whole = static_cast<int>(n.lane[i] == n.lane[i] ? n.lane[i] : 0.0f), half = whole >> 1;
    const uint32_t first = static_cast<uint32_t>(half + 127) << 23, second = static_cast<uint32_t>(whole - half + 127) << 23;
    return p.lane[i] * float_of(first) * float_of(second);
  });
}

inline float reduce_add(Float a) { return (a.lane[0] + a.lane[2]) + (a.lane[1] + a.lane[3]); }
inline Float reduce_add(Float a, Float b, Float c, Float d) {
  return {{reduce_add(a), reduce_add(b), reduce_add(c), reduce_add(d)}};
}
inline float reduce_max(Float a) {
  float out = a.lane[0];
  for (int i = 1; i < Float::N; ++i) out = a.lane[i] > out ? a.lane[i] : out;
  return out;
}
inline float reduce_min(Float a) {
  float out = a.lane[0];
  for (int i = 1; i < Float::N; ++i) out = a.lane[i] < out ? a.lane[i] : out;
  return out;
}

inline int compress(float* p, Mask m, Float v) {
  int count = 0;
  for (int i = 0; i < Float::N; ++i)
    if (m.lane[i]) p[count++] = v.lane[i];
  return count;
}
inline int compress(int32_t* p, Mask m, Int v) {
  int count = 0;
  for (int i = 0; i < Float::N; ++i)
    if (m.lane[i]) p[count++] = v.lane[i];
  return count;
}

inline Pairs load_pairs(const BFloat16* p) {
  Pairs out;
  std::memcpy(out.lane, p, sizeof out.lane);
  return out;
}
inline Pairs set1_pair(const BFloat16* p) {
  Pairs out;
  for (int i = 0; i < 2 * Float::N; ++i) out.lane[i] = p[i & 1];
  return out;
}
inline void store_pairs(BFloat16* p, Pairs a) { std::memcpy(p, a.lane, sizeof a.lane); }
inline Float even_values(Pairs a) { return each<Float>([&](int i) { return to_float(a.lane[2 * i]); }); }
inline Float odd_values(Pairs a) { return each<Float>([&](int i) { return to_float(a.lane[2 * i + 1]); }); }
inline Float dot(Float acc, Pairs a, Pairs b) {
  return each<Float>([&](int i) {
    const float odd = acc.lane[i] + to_float(a.lane[2 * i + 1]) * to_float(b.lane[2 * i + 1]);
    return odd + to_float(a.lane[2 * i]) * to_float(b.lane[2 * i]);
  });
}

using Code = int8_t;
struct Codes {
  int8_t lane[4 * Float::N];
};

inline Codes load_codes(const int8_t* p) {
  Codes out;
  std::memcpy(out.lane, p, sizeof out.lane);
  return out;
}
inline Codes set1_codes(const Code* p) {
  Codes out;
  for (int i = 0; i < 4 * Float::N; ++i) out.lane[i] = p[i & 3];
  return out;
}
inline void store_codes(Code* p, Int a) {
  for (int i = 0; i < Float::N; ++i) p[i] = static_cast<Code>(a.lane[i]);
}
inline Int dot(Int acc, Codes a, Codes b) {
  for (int i = 0; i < 4 * Float::N; ++i) acc.lane[i / 4] += a.lane[i] * b.lane[i];
  return acc;
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA

#include "float8_words.h"
