// QK norm and rotation: two passes over a row that stays in the first-level cache, one rounding at the end.
#include "qk_norm_rope.h"

#include <cstring>
#include <type_traits>

#include "qk_norm_row.h"
#include "token_loop.h"
#include "vector.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

template <class T, class Weight>
inline void norm_rope_token(const QkNormRopeArgs& args, int64_t token) {
  const auto& norm = args.norm;
  const int D = norm.head_dim, R = args.table.rotary_dim;
  const int64_t q_values = static_cast<int64_t>(norm.num_heads) * D;
  const int64_t k_values = static_cast<int64_t>(norm.num_kv_heads) * D;
  const T* q = static_cast<const T*>(norm.qkv) + token * norm.qkv_stride;
  const T* k = q + q_values;
  const Scales scales = inverse_rms(norm, q, k, token);

  float room[MAX_HEAD_DIM];
  const float* row = rotation_row(args.table, token, room);
  const auto part = [&](const T* x, const void* weights, float scale, int64_t values, void* outputs) {
    const Weight* weight = static_cast<const Weight*>(weights);
    T* out = static_cast<T*>(outputs) + token * values;
    for (int64_t at = 0; at < values; at += D) {
      norm_rope_head(x + at, weight + at, set1(scale), row, R, D, out + at);
    }
  };
  part(q, norm.q_weight, scales.q, q_values, args.q);
  part(k, norm.k_weight, scales.k, k_values, args.k);
  std::memcpy(static_cast<T*>(args.v) + token * k_values, k + k_values, k_values * sizeof(T));
}

}  // namespace

int64_t qk_norm_rope(const QkNormRopeArgs& args) {
  const auto& norm = args.norm;
  const int64_t bad = first_outside(args.table, norm.num_tokens);
  if (bad >= 0) return bad;
  const int64_t values = static_cast<int64_t>(norm.num_heads + 2 * norm.num_kv_heads) * norm.head_dim;
  with_types(norm, [&](auto* value, auto* weight) {
    using T = std::remove_pointer_t<decltype(value)>;
    using Weight = std::remove_const_t<std::remove_pointer_t<decltype(weight)>>;
    for_tokens(norm.num_tokens, values, [&](int64_t token) { norm_rope_token<T, Weight>(args, token); });
  });
  return -1;
}

void qk_sum_squares(const QkSumSquaresArgs& args) {
  with_float(args.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    for_tokens(args.num_tokens, args.q_width + args.counted_width, [&](int64_t token) {
      const T* q = static_cast<const T*>(args.qkv) + token * args.qkv_stride;
      args.stats[2 * token] = sum_squares(q, args.q_width);
      args.stats[2 * token + 1] = sum_squares(q + args.q_width, args.counted_width);
    });
  });
}

}  // namespace minimax_m2::MINIMAX_M2_ISA
