// One token's norm over the full widths of q and k, and the rotation of a normalised head; shared by qk_norm_rope and
// qk_norm_rope_cache.
#pragma once
#include <cmath>

#include "qk_norm_rope.h"
#include "rotate_head.h"
#include "vector.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

// Four accumulators hide the latency of fma; they are added in one fixed tree.
template <class T>
inline float sum_squares(const T* x, int64_t count) {
  constexpr int N = Float::N;
  Float sum[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * N <= count; i += 4 * N) {
    for (int part = 0; part < 4; ++part) {
      const Float value = load(x + i + part * N);
      sum[part] = fma(value, value, sum[part]);
    }
  }
  for (; i < count; i += N) {
    const Float value = count - i < N ? load(x + i, static_cast<int>(count - i)) : load(x + i);
    sum[0] = fma(value, value, sum[0]);
  }
  return reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// 1/rms of q and of k, rounded to float32 once.
struct Scales {
  float q;
  float k;
};
template <class T>
inline Scales inverse_rms(const QkNormArgs& args, const T* q, const T* k, int64_t token) {
  const int64_t q_values = static_cast<int64_t>(args.num_heads) * args.head_dim;
  const int64_t k_values = static_cast<int64_t>(args.num_kv_heads) * args.head_dim;
  const double q_sum = args.stats ? args.stats[2 * token] : sum_squares(q, q_values);
  const double k_sum = args.stats ? args.stats[2 * token + 1] : sum_squares(k, k_values);
  return {static_cast<float>(1.0 / std::sqrt(q_sum / args.q_width + args.eps)),
          static_cast<float>(1.0 / std::sqrt(k_sum / args.k_width + args.eps))};
}

template <class T, class Weight>
inline void norm_rope_head(const T* x, const Weight* weight, Float scale, const float* row, int rotary_dim,
                           int head_dim, T* out) {
  rotate_head(row, rotary_dim, head_dim, out,
              [&](auto... at) { return load_at(x, at...) * scale * load_at(weight, at...); });
}

// Calls body with null pointers of the model's storage type and of the weights', which are that or float32.
template <class Body>
inline void with_types(const QkNormArgs& args, Body&& body) {
  with_float(args.dtype, [&](auto* value) {
    if (args.weight_dtype == Dtype::float32) return body(value, static_cast<const float*>(nullptr));
    if constexpr (!std::is_same_v<decltype(value), float*>) body(value, static_cast<decltype(value)>(nullptr));
  });
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
