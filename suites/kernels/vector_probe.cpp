// Exposes vector.h to test_vector.py as C functions over arrays; compiled once per ISA.
#include <type_traits>

#include "dispatch.h"
#include "vector.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

template <class Body>
void map(const float* in, float* out, int64_t n, Body body) {
  for (int64_t i = 0; i < n; i += Float::N) {
    const int lanes = n - i < Float::N ? static_cast<int>(n - i) : Float::N;
    store(out + i, body(load(in + i, lanes)), lanes);
  }
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA

using namespace minimax_m2;
namespace v = minimax_m2::MINIMAX_M2_ISA;

#define EXPORT extern "C" __attribute__((visibility("default")))
#define UNARY(name) \
  EXPORT void probe_##name(const float* in, float* out, int64_t n) { v::map(in, out, n, [](v::Float x) { return v::name(x); }); }
#define CONVERSIONS(T, name)                                                                                    \
  EXPORT void probe_load_##name(const T* in, float* out) { v::store(out, v::load(in)); }                        \
  EXPORT void probe_store_##name(const float* in, T* out) { v::store(out, v::load(in)); }                       \
  EXPORT void probe_load_tail_##name(const T* in, float* out, int n) { v::store(out, v::load(in, n)); }         \
  EXPORT void probe_store_tail_##name(const float* in, T* out, int n) { v::store(out, v::load(in), n); }        \
  EXPORT void probe_scalar_##name(const float* in, T* out, int n) {                                             \
    for (int i = 0; i < n; ++i) v::round_to(out + i, in[i]);                                                    \
  }

EXPORT int probe_lanes() { return v::Float::N; }
UNARY(exp)
UNARY(sigmoid)
UNARY(silu)
UNARY(rsqrt)
UNARY(round)
CONVERSIONS(float, float32)
CONVERSIONS(BFloat16, bfloat16)
CONVERSIONS(Half, float16)
CONVERSIONS(Float8, float8_e4m3fn)

EXPORT float probe_reduce_add(const float* in) { return v::reduce_add(v::load(in)); }
EXPORT void probe_reduce_four(const float* in, float* out) {
  constexpr int n = v::Float::N;
  v::store(out, v::reduce_add(v::load(in), v::load(in + n), v::load(in + 2 * n), v::load(in + 3 * n)), 4);
}
EXPORT float probe_reduce_max(const float* in) { return v::reduce_max(v::load(in)); }
EXPORT float probe_reduce_min(const float* in) { return v::reduce_min(v::load(in)); }
EXPORT int probe_compress(const float* in, float limit, float* out) {
  return v::compress(out, v::gt(v::load(in), v::set1(limit)), v::load(in));
}
EXPORT void probe_widen(const Float8* in, BFloat16* out) {
  v::Pairs first, second;
  v::load_pairs(in, first, second);
  v::store_pairs(out, first);
  v::store_pairs(out + 2 * v::Float::N, second);
}
EXPORT void probe_dot(const BFloat16* a, const BFloat16* b, float* acc) {
  v::store(acc, v::dot(v::load(acc), v::load_pairs(a), v::load_pairs(b)));
}
EXPORT void probe_dot_broadcast(const BFloat16* pair, const BFloat16* b, float* acc) {
  v::store(acc, v::dot(v::load(acc), v::set1_pair(pair), v::load_pairs(b)));
}
EXPORT int probe_code_bias() { return multiplies_bytes(Isa::MINIMAX_M2_ISA) ? 128 : 0; }
// The first four numbers of a vector as codes, beside N runs of four.
EXPORT void probe_dot_codes(const float* codes, const int8_t* b, int32_t* acc) {
  v::Code held[v::Float::N];
  v::store_codes(held, v::to_int(v::load(codes)) + v::set1_int(probe_code_bias()));
  v::store_int(acc, v::dot(v::load_int(acc), v::set1_codes(held), v::load_codes(b)));
}
