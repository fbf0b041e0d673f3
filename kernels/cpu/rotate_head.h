// Rotary embedding of one head in registers, shared by rope, qk_norm_rope and qk_norm_rope_cache.
#pragma once
#include <type_traits>

#include "rotation.h"
#include "vector.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

constexpr int MAX_HEAD_DIM = 512;

inline int64_t position_of(const RotationTable& table, int64_t token) {
  return table.positions_dtype == Dtype::int32 ? static_cast<const int32_t*>(table.positions)[token]
                                               : static_cast<const int64_t*>(table.positions)[token];
}

// The first token whose position is not a row of the table, or -1.
inline int64_t first_outside(const RotationTable& table, int64_t num_tokens) {
  for (int64_t token = 0; token < num_tokens; ++token) {
    const int64_t position = position_of(table, token);
    if (position < 0 || position >= table.num_positions) return token;
  }
  return -1;
}

// A token's R/2 cosines, then its sines, in float32; widened once for all its heads into `room`.
inline const float* rotation_row(const RotationTable& table, int64_t token, float* room) {
  const int64_t offset = position_of(table, token) * table.stride;
  if (table.dtype == Dtype::float32) return static_cast<const float*>(table.cos_sin) + offset;
  with_float(table.dtype, [&](auto* tag) {
    const auto* row = static_cast<const std::remove_pointer_t<decltype(tag)>*>(table.cos_sin) + offset;
    int j = 0;
    for (; j + Float::N <= table.rotary_dim; j += Float::N) store(room + j, load(row + j));
    if (j < table.rotary_dim) store(room + j, load(row + j, table.rotary_dim - j), table.rotary_dim - j);
  });
  return room;
}

// N channels from j, or the first n of them.
template <class T>
inline Float load_at(const T* x, int j) { return load(x + j); }
template <class T>
inline Float load_at(const T* x, int j, int n) { return load(x + j, n); }

// Rotates the first `rotary_dim` channels of a head and passes the others on. take(j) and
// take(j, n) give channels as load_at does.
template <class Out, class Take>
inline void rotate_head(const float* row, int rotary_dim, int head_dim, Out* out, Take take) {
  constexpr int N = Float::N;
  const int half = rotary_dim / 2;
  int j = 0;
  for (; j + N <= half; j += N) {
    const Float a = take(j), b = take(half + j), cos = load(row + j), sin = load(row + half + j);
    store(out + j, fnma(b, sin, a * cos));
    store(out + half + j, fma(a, sin, b * cos));
  }
  if (j < half) {
    const int n = half - j;
    const Float a = take(j, n), b = take(half + j, n), cos = load(row + j, n), sin = load(row + half + j, n);
    store(out + j, fnma(b, sin, a * cos), n);
    store(out + half + j, fma(a, sin, b * cos), n);
  }
  for (j = rotary_dim; j + N <= head_dim; j += N) store(out + j, take(j));
  if (j < head_dim) store(out + j, take(j, head_dim - j), head_dim - j);
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
