// Vector primitives for AVX2 + FMA + F16C: eight lanes. Narrow loads with a tail copy through a small buffer.
#pragma once
#include <immintrin.h>

#include "scalar.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

struct Float {
  static constexpr int N = 8;
  __m256 v;
};
struct Int {
  __m256i v;
};
struct Mask {
  __m256 v;
};
struct Pairs {
  __m256i v;
};

inline Float set1(float x) { return {_mm256_set1_ps(x)}; }
inline Float zero() { return {_mm256_setzero_ps()}; }
inline Int set1_int(int32_t x) { return {_mm256_set1_epi32(x)}; }
inline Int iota() { return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)}; }
inline Int load_int(const int32_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
inline void store_int(int32_t* p, Int a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v); }

inline Int operator+(Int a, Int b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline Int operator-(Int a, Int b) { return {_mm256_sub_epi32(a.v, b.v)}; }
inline Int operator&(Int a, Int b) { return {_mm256_and_si256(a.v, b.v)}; }
inline Int operator|(Int a, Int b) { return {_mm256_or_si256(a.v, b.v)}; }
template <int K>
inline Int shl(Int a) { return {_mm256_slli_epi32(a.v, K)}; }
template <int K>
inline Int shr(Int a) { return {_mm256_srli_epi32(a.v, K)}; }
inline Int to_int(Float a) { return {_mm256_cvtps_epi32(a.v)}; }
inline Float to_float(Int a) { return {_mm256_cvtepi32_ps(a.v)}; }
inline Int as_int(Float a) { return {_mm256_castps_si256(a.v)}; }
inline Float as_float(Int a) { return {_mm256_castsi256_ps(a.v)}; }

inline Float operator+(Float a, Float b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Float operator-(Float a, Float b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Float operator*(Float a, Float b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Float operator/(Float a, Float b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Float fma(Float a, Float b, Float c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Float fnma(Float a, Float b, Float c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
inline Float min(Float a, Float b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Float max(Float a, Float b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Float abs(Float a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline Float neg(Float a) { return {_mm256_xor_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline Float sqrt(Float a) { return {_mm256_sqrt_ps(a.v)}; }
inline Float round(Float a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }

inline Mask lt(Float a, Float b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask le(Float a, Float b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)}; }
inline Mask gt(Float a, Float b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)}; }
inline Mask ge(Float a, Float b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ)}; }
inline Mask eq(Float a, Float b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)}; }
inline Mask is_nan(Float a) { return {_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)}; }
inline Mask eq(Int a, Int b) { return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(a.v, b.v))}; }
inline Mask lt(Int a, Int b) { return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(b.v, a.v))}; }
inline Mask operator&(Mask a, Mask b) { return {_mm256_and_ps(a.v, b.v)}; }
inline Mask operator|(Mask a, Mask b) { return {_mm256_or_ps(a.v, b.v)}; }
inline Mask first_lanes(int n) { return lt(iota(), set1_int(n)); }
inline Float blend(Mask m, Float a, Float b) { return {_mm256_blendv_ps(b.v, a.v, m.v)}; }
inline Int blend(Mask m, Int a, Int b) { return as_int(blend(m, as_float(a), as_float(b))); }
inline uint32_t bits(Mask m) { return static_cast<uint32_t>(_mm256_movemask_ps(m.v)); }

inline Float load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline Float load(const float* p, int n) { return {_mm256_maskload_ps(p, _mm256_castps_si256(first_lanes(n).v))}; }
inline Float load(const BFloat16* p) {
  const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16))};
}
inline Float load(const Half* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
// e4m3 shifted into fp16 is the same value times 2^-8, denormals included; 480 is the code of NaN.
inline Float load(const Float8* p) {
  const __m128i raw = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  const __m128i sign = _mm_slli_epi16(_mm_and_si128(raw, _mm_set1_epi16(0x80)), 8);
  const __m128i rest = _mm_slli_epi16(_mm_and_si128(raw, _mm_set1_epi16(0x7f)), 7);
  const Float value = Float{_mm256_cvtph_ps(_mm_or_si128(sign, rest))} * set1(256.0f);
  return blend(eq(abs(value), set1(480.0f)), value * set1(__builtin_nanf("")), value);
}
template <class T>
inline Float load(const T* p, int n) {
  T buffer[Float::N] = {};
  std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof(T));
  return load(buffer);
}

inline __m128i narrow(Int a) {  // the low 16 bits of each lane
  const __m256i packed = _mm256_packus_epi32(_mm256_and_si256(a.v, _mm256_set1_epi32(0xffff)), _mm256_setzero_si256());
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}
inline void store(float* p, Float a) { _mm256_storeu_ps(p, a.v); }
inline void store(float* p, Float a, int n) { _mm256_maskstore_ps(p, _mm256_castps_si256(first_lanes(n).v), a.v); }
inline Int bf16_codes(Float a) {
  const Int u = as_int(a), even = shr<16>(u) & set1_int(1);
  return blend(is_nan(a), shr<16>(u) | set1_int(0x40), shr<16>(u + set1_int(0x7fff) + even));
}
inline void store(BFloat16* p, Float a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(bf16_codes(a)));
}
inline void store(Half* p, Float a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline Int e4m3_codes(Float a) {
  const Int u = as_int(a), sign = shr<24>(u) & set1_int(0x80);
  const Float magnitude = abs(a);
  const Int m = as_int(magnitude), odd = shr<20>(m) & set1_int(1);
  const Int normal = shr<20>(m - set1_int(120 << 23) + set1_int(0x7ffff) + odd);
  const Int denormal = as_int(magnitude + set1(16384.0f)) - as_int(set1(16384.0f));
  Int code = blend(lt(magnitude, set1(0x1p-6f)), denormal, normal);
  code = blend(ge(magnitude, set1(448.0f)), set1_int(0x7e), code);
  return sign | blend(is_nan(a), set1_int(0x7f), code);
}
inline void store(Float8* p, Float a) {
  const __m128i words = narrow(e4m3_codes(a));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
}
template <class T>
inline void store(T* p, Float a, int n) {
  T buffer[Float::N];
  store(buffer, a);
  std::memcpy(p, buffer, static_cast<size_t>(n) * sizeof(T));
}

// p * 2^n for integer-valued n in [-151, 129], in two exact steps so that a denormal is rounded once.
inline Float scale_by_power_of_two(Float p, Float n) {
  const __m256i whole = to_int(n).v, half = _mm256_srai_epi32(whole, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i second = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(whole, half), bias), 23);
  return p * Float{_mm256_castsi256_ps(first)} * Float{_mm256_castsi256_ps(second)};
}

inline float reduce_add(Float a) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline Float reduce_add(Float a, Float b, Float c, Float d) {
  const __m256 ab = _mm256_add_ps(_mm256_permute2f128_ps(a.v, b.v, 0x20), _mm256_permute2f128_ps(a.v, b.v, 0x31));
  const __m256 cd = _mm256_add_ps(_mm256_permute2f128_ps(c.v, d.v, 0x20), _mm256_permute2f128_ps(c.v, d.v, 0x31));
  const __m256 two = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
  // The sums of a and c in lanes 0 and 2, those of b and d in lanes 4 and 6.
  const __m256 one = _mm256_add_ps(two, _mm256_movehdup_ps(two));
  const __m128 bd = _mm_moveldup_ps(_mm256_extractf128_ps(one, 1));
  return {_mm256_castps128_ps256(_mm_blend_ps(_mm256_castps256_ps128(one), bd, 0xa))};
}
inline float reduce_max(Float a) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline float reduce_min(Float a) {
  const __m128 four = _mm_min_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 two = _mm_min_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)));
}

inline int compress(float* p, Mask m, Float a) {
  int count = 0;
  for (uint32_t left = bits(m); left; left &= left - 1) p[count++] = a.v[__builtin_ctz(left)];
  return count;
}
inline int compress(int32_t* p, Mask m, Int a) {
  int32_t lanes[Float::N];
  store_int(lanes, a);
  int count = 0;
  for (uint32_t left = bits(m); left; left &= left - 1) p[count++] = lanes[__builtin_ctz(left)];
  return count;
}

inline Pairs load_pairs(const BFloat16* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
inline Pairs set1_pair(const BFloat16* p) {
  int32_t pair;
  std::memcpy(&pair, p, sizeof pair);
  return {_mm256_set1_epi32(pair)};
}
inline void store_pairs(BFloat16* p, Pairs a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v); }
inline Float even_values(Pairs a) { return {_mm256_castsi256_ps(_mm256_slli_epi32(a.v, 16))}; }
inline Float odd_values(Pairs a) {
  return {_mm256_castsi256_ps(_mm256_and_si256(a.v, _mm256_set1_epi32(static_cast<int>(0xffff0000u))))};
}
inline Float dot(Float acc, Pairs a, Pairs b) {
  return fma(even_values(a), even_values(b), fma(odd_values(a), odd_values(b), acc));
}

// Products of bytes saturate here, so codes are widened to 16 bits: of each four, the even and the odd ones.
using Code = int16_t;
struct Codes {
  __m256i even, odd;
};

inline Codes load_codes(const int8_t* p) {
  const __m256i four = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm256_srai_epi16(_mm256_slli_epi16(four, 8), 8), _mm256_srai_epi16(four, 8)};
}
inline Codes set1_codes(const Code* p) {
  int32_t pairs[2];
  std::memcpy(pairs, p, sizeof pairs);
  return {_mm256_set1_epi32(pairs[0]), _mm256_set1_epi32(pairs[1])};
}
inline void store_codes(Code* p, Int a) {
  const __m128i sorted = _mm_shufflehi_epi16(_mm_shufflelo_epi16(narrow(a), 0xd8), 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), sorted);
}
inline Int dot(Int acc, Codes a, Codes b) {
  return acc + Int{_mm256_madd_epi16(a.even, b.even)} + Int{_mm256_madd_epi16(a.odd, b.odd)};
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA

#include "float8_words.h"
