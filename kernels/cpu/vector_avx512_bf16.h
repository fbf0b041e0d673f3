// AVX-512 with BF16: one instruction per two products. vdpbf16ps ignores MXCSR: it rounds to nearest even, takes
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

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
