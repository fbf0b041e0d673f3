// Warpgroup products of 16-bit factors on sm_90a, as wide as there are columns: every multiple of 16 up to 160.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include <type_traits>

namespace hopper {

// The registers of a sum, as operands %0 and on.
#define L8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define L16 L8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define L24 L16 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define L32 L24 ",%24,%25,%26,%27,%28,%29,%30,%31"
#define L40 L32 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define L48 L40 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define L56 L48 ",%48,%49,%50,%51,%52,%53,%54,%55"
#define L64 L56 ",%56,%57,%58,%59,%60,%61,%62,%63"
#define L72 L64 ",%64,%65,%66,%67,%68,%69,%70,%71"
#define L80 L72 ",%72,%73,%74,%75,%76,%77,%78,%79"
#define E8(i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define D8 E8(0)
#define D16 D8, E8(8)
#define D24 D16, E8(16)
#define D32 D24, E8(24)
#define D40 D32, E8(32)
#define D48 D40, E8(40)
#define D56 D48, E8(48)
#define D64 D56, E8(56)
#define D72 D64, E8(64)
#define D80 D72, E8(72)

// Both factors lie along their channels; ``A``, ``B`` and ``P`` number the operands behind the sum's.
#define PRODUCT(TYPE, COLUMNS, COUNT, A, B, P)                                                       \
  asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %" P ", 0;\n\t"                                 \
               "wgmma.mma_async.sync.aligned.m64n" COLUMNS "k16.f32." TYPE "." TYPE " {" L##COUNT    \
               "}, %" A ", %" B ", p, 1, 1, 0, 0;\n\t}"                                              \
               : D##COUNT                                                                            \
               : "l"(a), "l"(b), "r"(accumulate))
#define CASE(COLUMNS, COUNT, A, B, P)                        \
  if constexpr (kColumns == COLUMNS) {                       \
    if constexpr (std::is_same_v<Half, __nv_bfloat16>)       \
      PRODUCT("bf16", #COLUMNS, COUNT, A, B, P);             \
    else                                                     \
      PRODUCT("f16", #COLUMNS, COUNT, A, B, P);              \
  }

// d[64, kColumns] = (accumulate ? d : 0) + a[64, 16] * b[kColumns, 16]^T; d may have room for more columns.
template <class Half, int kColumns, int kCount>
__device__ __forceinline__ void product16(float (&d)[kCount], uint64_t a, uint64_t b, int accumulate) {
  static_assert(kColumns % 16 == 0 && kColumns <= 160 && kColumns <= 2 * kCount);
  CASE(16, 8, "8", "9", "10")
  CASE(32, 16, "16", "17", "18")
  CASE(48, 24, "24", "25", "26")
  CASE(64, 32, "32", "33", "34")
  CASE(80, 40, "40", "41", "42")
  CASE(96, 48, "48", "49", "50")
  CASE(112, 56, "56", "57", "58")
  CASE(128, 64, "64", "65", "66")
  CASE(144, 72, "72", "73", "74")
  CASE(160, 80, "80", "81", "82")
}

#undef CASE
#undef PRODUCT
#undef D80
#undef D72
#undef D64
#undef D56
#undef D48
#undef D40
#undef D32
#undef D24
#undef D16
#undef D8
#undef E8
#undef L80
#undef L72
#undef L64
#undef L56
#undef L48
#undef L40
#undef L32
#undef L24
#undef L16
#undef L8

}  // namespace hopper
