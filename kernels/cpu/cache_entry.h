// Writing entries of the paged cache, shared by kv_cache and qk_norm_rope_cache.
#pragma once
#include <cstring>
#include <type_traits>

#include "cache_layout.h"
#include "vector.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

// The first token whose slot is past the cache, or -1.
inline int64_t first_past(const CacheSlots& slots, int64_t num_tokens) {
  for (int64_t token = 0; token < num_tokens; ++token) {
    if (slots.slots[token] >= slots.num_slots) return token;
  }
  return -1;
}

// The entry of a token's head 0; the slot is not negative.
template <class Cache>
inline Cache* entry_of(const CacheLayout& cache, const CacheSlots& slots, int64_t token) {
  const int64_t slot = slots.slots[token];
  return static_cast<Cache*>(cache.data) + slot / slots.page * cache.page_stride + slot % slots.page * cache.slot_stride;
}

// Stores n values; a scaled or e4m3 entry saturates at 448. Division, as the formula says: a reciprocal rounds twice.
template <class T, class Cache>
inline void write_entry(const T* x, int n, bool scaled, float scale, Cache* out) {
  constexpr int N = Float::N;
  if constexpr (std::is_same_v<T, Cache>) {
    if (!scaled) {
      std::memcpy(out, x, n * sizeof(T));
      return;
    }
  }
  const auto stored = [&](Float value) {
    // min and max return their second operand where one is NaN, so NaN stays.
    return scaled ? max(set1(-448.0f), min(set1(448.0f), value / set1(scale))) : value;
  };
  int i = 0;
  for (; i + N <= n; i += N) store(out + i, stored(load(x + i)));
  if (i < n) store(out + i, stored(load(x + i, n - i)), n - i);
}

template <class Body>
inline void with_cache(Dtype dtype, Body&& body) {
  if (dtype == Dtype::float8_e4m3) return body(static_cast<Float8*>(nullptr));
  with_float(dtype, body);
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
