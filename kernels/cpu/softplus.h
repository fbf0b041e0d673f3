// log(1 + e^x) to the last places of a small result, which the sum 1 + e^x would swallow.
#pragma once
#include "vector.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

// log(1 + t) for t in 0..1, as 2 atanh(s) with s = t / (2 + t) <= 1/3: below 2 ulp.
inline Float log1p_of_fraction(Float t) {
  const Float s = t / (t + set1(2.0f)), u = s * s;
  Float p = set1(1.220470183e-1f);
  p = fma(p, u, set1(1.069713368e-1f));
  p = fma(p, u, set1(1.431031170e-1f));
  p = fma(p, u, set1(1.999934741e-1f));
  p = fma(p, u, set1(3.333333963e-1f));
  const Float twice = s + s;
  return fma(twice * u, p, twice);
}

// Below 4 ulp; NaN stays NaN.
inline Float softplus(Float x) { return max(x, zero()) + log1p_of_fraction(exp(neg(abs(x)))); }

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
