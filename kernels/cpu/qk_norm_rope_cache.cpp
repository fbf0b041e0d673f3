// QK norm and rotation with k and v written straight into their slots. Where the cache has the model's dtype a head of k
// is stored once; an FP8 cache rounds it to the model's dtype first, as the unfused pair does.
#include "qk_norm_rope_cache.h"

#include <type_traits>

#include "cache_entry.h"
#include "qk_norm_row.h"
#include "token_loop.h"
#include "vector.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

template <class T, class Weight, class Cache>
inline void store_token(const QkNormRopeCacheArgs& args, int64_t token) {
  const auto& norm = args.norm;
  const int D = norm.head_dim, R = args.table.rotary_dim;
  const int64_t q_values = static_cast<int64_t>(norm.num_heads) * D;
  const int64_t k_values = static_cast<int64_t>(norm.num_kv_heads) * D;
  const T* q = static_cast<const T*>(norm.qkv) + token * norm.qkv_stride;
  const T *k = q + q_values, *v = k + k_values;
  const Scales scales = inverse_rms(norm, q, k, token);

  float room[MAX_HEAD_DIM];
  const float* row = rotation_row(args.table, token, room);
  const Weight* q_weight = static_cast<const Weight*>(norm.q_weight);
  T* q_out = static_cast<T*>(args.q) + token * q_values;
  for (int64_t at = 0; at < q_values; at += D) {
    norm_rope_head(q + at, q_weight + at, set1(scales.q), row, R, D, q_out + at);
  }

  if (args.slots.slots[token] < 0) return;
  const Weight* k_weight = static_cast<const Weight*>(norm.k_weight);
  Cache* k_out = entry_of<Cache>(args.k_cache, args.slots, token);
  Cache* v_out = entry_of<Cache>(args.v_cache, args.slots, token);
  for (int head = 0; head < norm.num_kv_heads; ++head) {
    const int64_t at = static_cast<int64_t>(head) * D;
    Cache* k_entry = k_out + head * args.k_cache.head_stride;
    if constexpr (std::is_same_v<T, Cache>) {
      norm_rope_head(k + at, k_weight + at, set1(scales.k), row, R, D, k_entry);
    } else {
      T rounded[MAX_HEAD_DIM];
      norm_rope_head(k + at, k_weight + at, set1(scales.k), row, R, D, rounded);
      write_entry(rounded, D, false, 1.0f, k_entry);
    }
    write_entry(v + at, D, false, 1.0f, v_out + head * args.v_cache.head_stride);
  }
}

}  // namespace

Refused qk_norm_rope_cache(const QkNormRopeCacheArgs& args) {
  const auto& norm = args.norm;
  const Refused refused{first_outside(args.table, norm.num_tokens), first_past(args.slots, norm.num_tokens)};
  if (refused.position >= 0 || refused.slot >= 0) return refused;
  const int64_t values = static_cast<int64_t>(norm.num_heads + 2 * norm.num_kv_heads) * norm.head_dim;
  with_types(norm, [&](auto* value, auto* weight) {
    using T = std::remove_pointer_t<decltype(value)>;
    using Weight = std::remove_const_t<std::remove_pointer_t<decltype(weight)>>;
    if (args.cache_dtype == Dtype::float8_e4m3) {
      for_tokens(norm.num_tokens, values, [&](int64_t token) { store_token<T, Weight, Float8>(args, token); });
    } else {
      for_tokens(norm.num_tokens, values, [&](int64_t token) { store_token<T, Weight, T>(args, token); });
    }
  });
  return refused;
}

}  // namespace minimax_m2::MINIMAX_M2_ISA
