// Walks one row in vectors: whole ones, then one tail. A body takes (i) for a whole vector and (i, n) for n lanes,
// written once as [&](int64_t i, auto... n) { store(y + i, load(x + i, n...), n...); }.
#pragma once
#include "vector.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

template <class Body>
inline void for_vectors(int64_t count, Body body) {
  int64_t i = 0;
  for (; i + Float::N <= count; i += Float::N) body(i);
  if (i < count) body(i, static_cast<int>(count - i));
}

// 1 / sqrt(mean of squares + eps), rounded to float32 once; at(i, n...) gives the values, 0 beyond n.
// Four accumulators hide the latency of fma; they are added in one fixed tree.
template <class At>
inline float inverse_rms(int64_t count, double eps, At at) {
  constexpr int N = Float::N;
  Float sum[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * N <= count; i += 4 * N) {
    for (int part = 0; part < 4; ++part) {
      const Float value = at(i + part * N);
      sum[part] = fma(value, value, sum[part]);
    }
  }
  for_vectors(count - i, [&](int64_t rest, auto... n) {
    const Float value = at(i + rest, n...);
    sum[0] = fma(value, value, sum[0]);
  });
  const double total = reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3]));
  return static_cast<float>(1.0 / std::sqrt(total / static_cast<double>(count) + eps));
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
