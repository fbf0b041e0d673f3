// The vector vocabulary of every CPU kernel. One of four files supplies the primitives, picked by the build
// (MINIMAX_M2_VECTOR_HEADER); everything below them is written once.
//
// Everything lives in an anonymous namespace inside minimax_m2::<isa>, so no object can lend code to another.
//
//   Float            N fp32 lanes (4 portable, 8 avx2, 16 avx512)       Float::N
//   Int              N int32 lanes                                      Mask   N truth values
//   Pairs            N pairs of bf16 (2N values), the operand of dot
//
//   load(p)  load(p, n)      T* -> Float for T in float, BFloat16, Half, Float8; load(p, n) reads lanes < n only,
//                            the others are 0 and their memory is not touched (0 <= n <= N)
//   store(p, v)  store(p, v, n)   round to nearest even; NaN stays NaN; Float8 saturates to +-448
//   set1(x)  zero()  set1_int(i)  iota()  load_int(p)  store_int(p, v)
//   + - * /   fma(a,b,c) = a*b + c   fnma(a,b,c) = c - a*b   min  max  abs  neg  sqrt  round (to nearest even)
//   min(a, b), max(a, b) return b when either is NaN
//   lt le gt ge eq (ordered)  is_nan  blend(m, a, b) = m ? a : b   bits(m)  first_lanes(n)   m & m, m | m
//   Int: + -  shl<k>  shr<k>  eq  lt  blend    to_int (round to nearest)  to_float  as_int  as_float
//   reduce_add  reduce_max  reduce_min          one fixed tree, so a result never depends on threads
//   reduce_add(a, b, c, d)   Float whose first four lanes are reduce_add of each, bit for bit
//   compress(p, m, v)        writes the chosen lanes contiguously, returns how many; p needs room for N
//   load_pairs(p)  set1_pair(p)  store_pairs(p, v)  dot(acc, a, b)     acc[i] + a[2i+1]*b[2i+1] + a[2i]*b[2i]
//   even_values(v)  odd_values(v)     a pair's halves as Float
//   load_pairs(p, a, b)      4N e4m3 codes in runs of 8, taken in turn by a and b, exact
//   Codes                    N runs of four int8 codes, an operand of dot over Int; load_codes(p) takes those of a weight
//   Code, store_codes(p, i)  one code of the other operand and N of them, which belong together: unsigned bytes where
//                            dispatch.h's multiplies_bytes says so, else signed, in an order of their own within four
//   set1_codes(p)            a run of Code for every lane     dot(i, a, b)     i[l] + sum of a[4l+j]*b[4l+j], exact
//   CHEAP_WIDENING           whether that costs nothing beside a few products
//   exp  sigmoid  silu  rsqrt (as 1/sqrt)           accuracy stated at each
//
// Contraction is off (-ffp-contract=off): a product is fused where the source says fma and nowhere else.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "dtype.h"
#include MINIMAX_M2_VECTOR_HEADER

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

[[maybe_unused]] constexpr float INFINITE = std::numeric_limits<float>::infinity();

// e^x. Cody-Waite reduction by ln 2 in two parts, degree-6 polynomial, then scaling by a power of two.
// Error below 1.1 ulp; overflow gives +inf, underflow passes through the denormals to 0, NaN stays NaN.
inline Float exp(Float x) {
  const Float clamped = min(set1(89.0f), max(set1(-104.0f), x));
  const Float n = round(clamped * set1(1.44269504088896341f));
  Float r = fnma(n, set1(0.693359375f), clamped);
  r = fnma(n, set1(-2.12194440e-4f), r);
  Float p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p, r * r, r) + set1(1.0f);
  return scale_by_power_of_two(p, n);
}

// 1 / (1 + e^-x), as 1 or t over 1 + t with t = e^-|x|, so that a small result keeps its digits: below 2.5 ulp.
inline Float sigmoid(Float x) {
  const Float t = exp(neg(abs(x)));
  return blend(lt(x, zero()), t, set1(1.0f)) / (set1(1.0f) + t);
}

// x * sigmoid(x) with one division: below 3.5 ulp; under x = -87, where t is a denormal, up to |x| of its last places.
inline Float silu(Float x) {
  const Float t = exp(neg(abs(x)));
  return x * blend(lt(x, zero()), t, set1(1.0f)) / (set1(1.0f) + t);
}

// Two correctly rounded operations: below 1.5 ulp.
inline Float rsqrt(Float x) { return set1(1.0f) / sqrt(x); }

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
