// Storage types of tensors and the ISA list, shared by kernels and bindings. No torch header here:
// a kernel unit compiles in a second and sees raw pointers, strides and these types only.
#pragma once
#include <cstdint>

namespace minimax_m2 {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};
struct Float8 {  // e4m3fn: no infinities, 0x7f and 0xff are NaN, largest finite value 448
  uint8_t bits;
};

// The variants of a kernel, ascending, in the order of isa.COMPILED in isa.py.
enum class Isa { portable, avx2, avx512, avx512_bf16, amx };

enum class Dtype : int32_t { float32, bfloat16, float16, float8_e4m3, int8, int32, int64 };

// Calls `body` with a null pointer of the storage type, so that a kernel is written once as a generic lambda:
//   with_float(args.dtype, [&](auto* tag) { using T = std::remove_pointer_t<decltype(tag)>; ... });
template <class Body>
static inline void with_float(Dtype dtype, Body&& body) {
  switch (dtype) {
    case Dtype::float32: return body(static_cast<float*>(nullptr));
    case Dtype::bfloat16: return body(static_cast<BFloat16*>(nullptr));
    case Dtype::float16: return body(static_cast<Half*>(nullptr));
    default: __builtin_unreachable();  // bindings check dtypes before they launch
  }
}

template <class Body>
static inline void with_index(Dtype dtype, Body&& body) {
  if (dtype == Dtype::int32) return body(static_cast<int32_t*>(nullptr));
  return body(static_cast<int64_t*>(nullptr));
}

}  // namespace minimax_m2

// Declares `result name(args)` once per ISA namespace and the table a binding launches through, in the order of
// isa.COMPILED in isa.py. The last entry serves machines with AMX: MINIMAX_M2_TILED_KERNEL is for an op with a tile unit
// (<op>_amx.cpp), the others run their highest vector variant there.
#if defined(__x86_64__)
#define MINIMAX_M2_KERNEL(result, name, ...) MINIMAX_M2_KERNEL_TABLE(avx512_bf16, result, name, __VA_ARGS__)
#define MINIMAX_M2_TILED_KERNEL(result, name, ...)       \
  namespace minimax_m2::amx { result name(__VA_ARGS__); } \
  MINIMAX_M2_KERNEL_TABLE(amx, result, name, __VA_ARGS__)
#define MINIMAX_M2_KERNEL_TABLE(tiled, result, name, ...)   \
  namespace minimax_m2 {                                    \
  namespace portable { result name(__VA_ARGS__); }          \
  namespace avx2 { result name(__VA_ARGS__); }              \
  namespace avx512 { result name(__VA_ARGS__); }            \
  namespace avx512_bf16 { result name(__VA_ARGS__); }       \
  [[maybe_unused]] static result (*const name##_table[])(__VA_ARGS__) = {        \
      portable::name, avx2::name, avx512::name, avx512_bf16::name, tiled::name}; \
  }
#else
#define MINIMAX_M2_KERNEL(result, name, ...)                \
  namespace minimax_m2 {                                    \
  namespace portable { result name(__VA_ARGS__); }          \
  [[maybe_unused]] static result (*const name##_table[])(__VA_ARGS__) = {portable::name}; \
  }
#define MINIMAX_M2_TILED_KERNEL MINIMAX_M2_KERNEL
#endif
