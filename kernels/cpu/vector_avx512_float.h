// Vector primitives common to both AVX-512 variants (F, BW, DQ, VL): sixteen lanes, masks in k registers.
#pragma once
#include <immintrin.h>

#include "scalar.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

struct Float {
  static constexpr int N = 16;
  __m512 v;
};
struct Int {
  __m512i v;
};
struct Mask {
  __mmask16 v;
};
struct Pairs {
  __m512i v;
};

inline Float set1(float x) { return {_mm512_set1_ps(x)}; }
inline Float zero() { return {_mm512_setzero_ps()}; }
inline Int set1_int(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline Int iota() { return {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)}; }
inline Int load_int(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store_int(int32_t* p, Int a) { _mm512_storeu_si512(p, a.v); }

inline Int operator+(Int a, Int b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline Int operator-(Int a, Int b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline Int operator&(Int a, Int b) { return {_mm512_and_si512(a.v, b.v)}; }
inline Int operator|(Int a, Int b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int K>
inline Int shl(Int a) { return {_mm512_slli_epi32(a.v, K)}; }
template <int K>
inline Int shr(Int a) { return {_mm512_srli_epi32(a.v, K)}; }
inline Int to_int(Float a) { return {_mm512_cvtps_epi32(a.v)}; }
inline Float to_float(Int a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline Int as_int(Float a) { return {_mm512_castps_si512(a.v)}; }
inline Float as_float(Int a) { return {_mm512_castsi512_ps(a.v)}; }

inline Float operator+(Float a, Float b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Float operator-(Float a, Float b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Float operator*(Float a, Float b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Float operator/(Float a, Float b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Float fma(Float a, Float b, Float c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Float fnma(Float a, Float b, Float c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
inline Float min(Float a, Float b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Float max(Float a, Float b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Float abs(Float a) { return {_mm512_abs_ps(a.v)}; }
inline Float neg(Float a) { return {_mm512_xor_ps(_mm512_set1_ps(-0.0f), a.v)}; }
inline Float sqrt(Float a) { return {_mm512_sqrt_ps(a.v)}; }
inline Float round(Float a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }

inline Mask lt(Float a, Float b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask le(Float a, Float b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
inline Mask gt(Float a, Float b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
inline Mask ge(Float a, Float b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)}; }
inline Mask eq(Float a, Float b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
inline Mask is_nan(Float a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
inline Mask eq(Int a, Int b) { return {_mm512_cmpeq_epi32_mask(a.v, b.v)}; }
inline Mask lt(Int a, Int b) { return {_mm512_cmplt_epi32_mask(a.v, b.v)}; }
inline Mask operator&(Mask a, Mask b) { return {static_cast<__mmask16>(a.v & b.v)}; }
inline Mask operator|(Mask a, Mask b) { return {static_cast<__mmask16>(a.v | b.v)}; }
inline Mask first_lanes(int n) { return {static_cast<__mmask16>((1u << n) - 1u)}; }
inline Float blend(Mask m, Float a, Float b) { return {_mm512_mask_blend_ps(m.v, b.v, a.v)}; }
inline Int blend(Mask m, Int a, Int b) { return {_mm512_mask_blend_epi32(m.v, b.v, a.v)}; }
inline uint32_t bits(Mask m) { return m.v; }

inline Float expand(const BFloat16*, __m256i raw) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16))};
}
inline Float expand(const Half*, __m256i raw) { return {_mm512_cvtph_ps(raw)}; }
// e4m3 shifted into fp16 is the same value times 2^-8, denormals included; 480 is the code of NaN.
inline Float expand(const Float8*, __m128i raw) {
  const __m256i wide = _mm256_cvtepu8_epi16(raw);
  const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x80)), 8);
  const __m256i rest = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x7f)), 7);
  const Float value = Float{_mm512_cvtph_ps(_mm256_or_si256(sign, rest))} * set1(256.0f);
  return blend(eq(abs(value), set1(480.0f)), value * set1(__builtin_nanf("")), value);
}

inline Float load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Float load(const float* p, int n) { return {_mm512_maskz_loadu_ps(first_lanes(n).v, p)}; }
inline Float load(const BFloat16* p) { return expand(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline Float load(const BFloat16* p, int n) { return expand(p, _mm256_maskz_loadu_epi16(first_lanes(n).v, p)); }
inline Float load(const Half* p) { return expand(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline Float load(const Half* p, int n) { return expand(p, _mm256_maskz_loadu_epi16(first_lanes(n).v, p)); }
inline Float load(const Float8* p) { return expand(p, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline Float load(const Float8* p, int n) { return expand(p, _mm_maskz_loadu_epi8(first_lanes(n).v, p)); }

// Integer arithmetic in both variants: vcvtneps2bf16 flushes denormals, and one rounding rule for all ISAs is
// worth more than the three instructions it would save.
inline Int bf16_codes(Float a) {
  const Int u = as_int(a), even = shr<16>(u) & set1_int(1);
  return blend(is_nan(a), shr<16>(u) | set1_int(0x40), shr<16>(u + set1_int(0x7fff) + even));
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
inline __m256i fp16_codes(Float a) { return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

inline void store(float* p, Float a) { _mm512_storeu_ps(p, a.v); }
inline void store(float* p, Float a, int n) { _mm512_mask_storeu_ps(p, first_lanes(n).v, a.v); }
inline void store(BFloat16* p, Float a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(bf16_codes(a).v));
}
inline void store(BFloat16* p, Float a, int n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n).v, _mm512_cvtepi32_epi16(bf16_codes(a).v));
}
inline void store(Half* p, Float a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), fp16_codes(a)); }
inline void store(Half* p, Float a, int n) { _mm256_mask_storeu_epi16(p, first_lanes(n).v, fp16_codes(a)); }
inline void store(Float8* p, Float a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(e4m3_codes(a).v));
}
inline void store(Float8* p, Float a, int n) {
  _mm_mask_storeu_epi8(p, first_lanes(n).v, _mm512_cvtepi32_epi8(e4m3_codes(a).v));
}

// p * 2^n for integer-valued n, one rounding.
inline Float scale_by_power_of_two(Float p, Float n) { return {_mm512_scalef_ps(p.v, n.v)}; }

inline float reduce_add(Float a) { return _mm512_reduce_add_ps(a.v); }
inline Float reduce_add(Float a, Float b, Float c, Float d) {
  const __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a.v, b.v, 0x44), _mm512_shuffle_f32x4(a.v, b.v, 0xee));
  const __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c.v, d.v, 0x44), _mm512_shuffle_f32x4(c.v, d.v, 0xee));
  const __m512 four = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  const __m512 two = _mm512_add_ps(four, _mm512_permute_ps(four, 0x4e));
  const __m512 one = _mm512_add_ps(two, _mm512_permute_ps(two, 0xb1));
  return {_mm512_maskz_compress_ps(0x1111, one)};
}
inline float reduce_max(Float a) { return _mm512_reduce_max_ps(a.v); }
inline float reduce_min(Float a) { return _mm512_reduce_min_ps(a.v); }

// Compress in registers, then store whole: the memory form of vpcompress is microcoded on AMD.
inline int compress(float* p, Mask m, Float a) {
  _mm512_storeu_ps(p, _mm512_maskz_compress_ps(m.v, a.v));
  return __builtin_popcount(m.v);
}
inline int compress(int32_t* p, Mask m, Int a) {
  _mm512_storeu_si512(p, _mm512_maskz_compress_epi32(m.v, a.v));
  return __builtin_popcount(m.v);
}

// The bfloat16 of each e4m3 magnitude, one of its bytes.
template <int ENTRIES>
struct ByteTable {
  alignas(64) uint8_t entry[ENTRIES];
};
template <int ENTRIES>
constexpr ByteTable<ENTRIES> byte_table(int shift) {
  ByteTable<ENTRIES> table{};
  for (int m = 0; m < ENTRIES; ++m) {
    // Below 8 the exponent's bits are 0: multiples of 2^-9, which bfloat16 holds as normal numbers.
    int code = (m << 4) + 0x3c00;
    if (m < 8) code = m >= 4 ? (m << 5) + 0x3b80 : m >= 2 ? (m << 6) + 0x3b00 : m * 0x3b00;
    if (m == 127) code |= 0x7fc0;
    table.entry[m] = static_cast<uint8_t>(code >> shift);
  }
  return table;
}

inline Pairs load_pairs(const BFloat16* p) { return {_mm512_loadu_si512(p)}; }
inline Pairs set1_pair(const BFloat16* p) {
  int32_t pair;
  std::memcpy(&pair, p, sizeof pair);
  return {_mm512_set1_epi32(pair)};
}
inline void store_pairs(BFloat16* p, Pairs a) { _mm512_storeu_si512(p, a.v); }
inline Float even_values(Pairs a) { return {_mm512_castsi512_ps(_mm512_slli_epi32(a.v, 16))}; }
inline Float odd_values(Pairs a) {
  return {_mm512_castsi512_ps(_mm512_and_si512(a.v, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
