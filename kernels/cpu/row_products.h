// Products of rows with rows: y[t, n] = sum_k x[t, k] * w[n, k], the form of every dense layer whose weight is stored one
// row per output. A register block of R x C sums runs over k in whole vectors, so neither operand is repacked.
//
// Each sum takes its terms lane by lane in one fixed order and ends in one fixed tree. The order does not depend on R,
// C, blocks or threads: a result has the same bits for one row as for a thousand.
#pragma once
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "vector.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

// Rows of x in one register block: as many sums as the registers hold beside their operands.
[[maybe_unused]] constexpr int BLOCK_ROWS = Float::N == 16 ? 6 : 2;
// Enough sums for one row of x to hide the latency of an addition.
constexpr int block_columns(int rows) { return rows == 1 && Float::N == 16 ? 8 : 4; }

inline Pairs load_pairs(const BFloat16* p, int n) {
  BFloat16 buffer[2 * Float::N] = {};
  std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof(BFloat16));
  return load_pairs(buffer);
}

template <int R, int C>
inline void clear(Float (&sum)[R][C]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) sum[r][c] = zero();
}

// sum[r][c] += x[r][k] * w[c][k] for begin <= k < end, one lane per term; the lanes are added by the caller.
// Inlined by force: sums that are passed by reference to a call live in memory, at a third of the speed.
template <int R, int C, class X, class W>
[[gnu::always_inline]] inline void add_products(Float (&sum)[R][C], const X* const (&x)[R], const W* const (&w)[C], int64_t begin,
                         int64_t end) {
  constexpr bool paired = std::is_same_v<X, BFloat16> && std::is_same_v<W, BFloat16>;
  const auto step = [&](auto&& left, auto&& right, auto&& multiply_add) {
    decltype(right(0)) b[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) b[c] = right(c);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const auto a = left(r);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) sum[r][c] = multiply_add(a, b[c], sum[r][c]);
    }
  };
  int64_t k = begin;
  if constexpr (paired) {
    const auto pairwise = [](Pairs a, Pairs b, Float s) { return dot(s, a, b); };
    for (; k + 2 * Float::N <= end; k += 2 * Float::N)
      step([&](int r) { return load_pairs(x[r] + k); }, [&](int c) { return load_pairs(w[c] + k); }, pairwise);
    const int rest = static_cast<int>(end - k);
    if (rest > 0)
      step([&](int r) { return load_pairs(x[r] + k, rest); }, [&](int c) { return load_pairs(w[c] + k, rest); },
           pairwise);
  } else {
    const auto fused = [](Float a, Float b, Float s) { return fma(a, b, s); };
    for (; k + Float::N <= end; k += Float::N)
      step([&](int r) { return load(x[r] + k); }, [&](int c) { return load(w[c] + k); }, fused);
    const int rest = static_cast<int>(end - k);
    if (rest > 0)
      step([&](int r) { return load(x[r] + k, rest); }, [&](int c) { return load(w[c] + k, rest); }, fused);
  }
}

// Calls body(std::integral_constant<int, R>) for the number of rows in a block.
template <class Body>
inline void with_rows(int rows, Body&& body) {
  const auto call = [&]<int R>() {
    if constexpr (R <= BLOCK_ROWS) body(std::integral_constant<int, R>{});
  };
  switch (rows) {
    case 1: return call.template operator()<1>();
    case 2: return call.template operator()<2>();
    case 3: return call.template operator()<3>();
    case 4: return call.template operator()<4>();
    case 5: return call.template operator()<5>();
    default: return call.template operator()<6>();
  }
}

// Fetches rows of weight, a few lines at a time.
struct Ahead {
  const char* row;
  int64_t stride, row_bytes, rows;  // strides in bytes; rows yet to fetch
  int64_t lines;                    // at a time
  int64_t offset = 0;

  void fetch() {
    for (int64_t i = 0; i < lines && rows > 0; ++i) {
      __builtin_prefetch(row + offset, 0, 2);
      offset += 64;
      if (offset < row_bytes) continue;
      offset = 0;
      row += stride;
      --rows;
    }
  }
};

// Inputs between which a register block fetches lines: as many as the processor can wait for.
[[maybe_unused]] constexpr int64_t FETCH_DEPTH = 512;

// One register block: emit(r, c, count, sums) for the rows x[0..R), with the sums of columns c..c+count of w in the first
// lanes, count <= 4, until all `columns` <= C are told.
template <int R, int C, class X, class W, class Emit>
inline void multiply_block(const X* const (&x)[R], const W* w, int64_t w_stride, int columns, int64_t depth,
                           Ahead& ahead, Emit&& emit) {
  const W* column[C];
  // A column past the end repeats the last one and is not emitted.
  for (int c = 0; c < C; ++c) column[c] = w + std::min(c, columns - 1) * w_stride;
  Float sum[R][C];
  clear(sum);
  const int64_t piece = ahead.rows > 0 ? FETCH_DEPTH : depth;
  for (int64_t k = 0; k < depth; k += piece) {
    ahead.fetch();
    add_products(sum, x, column, k, std::min(depth, k + piece));
  }
  static_assert(C % 4 == 0);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; c += 4)
      if (c < columns)
        emit(r, c, std::min(4, columns - c), reduce_add(sum[r][c], sum[r][c + 1], sum[r][c + 2], sum[r][c + 3]));
}

// A core's second-level cache holds the bytes of weight that a slab of rows meets, and those that it meets next. Each slab
// reads the whole weight, so slabs are tall; rows pass in sequence, which the processor fetches by itself.
[[maybe_unused]] constexpr int64_t BLOCK_BYTES = 192 * 1024;
[[maybe_unused]] constexpr int64_t SLAB_ROWS = 384;
[[maybe_unused]] constexpr int64_t LEAST_SLAB_ROWS = 96;  // where shorter slabs give idle threads work

// Slabs of rows: as few as SLAB_ROWS allows, but enough for every thread to have two blocks.
inline int64_t slabs_of(int64_t num_rows, int64_t blocks) {
  const auto slabs = [&](int64_t rows) { return (num_rows + rows - 1) / rows; };
  const int64_t wanted = (2 * omp_get_max_threads() + blocks - 1) / std::max<int64_t>(1, blocks);
  return std::max(slabs(SLAB_ROWS), std::min(wanted, slabs(LEAST_SLAB_ROWS)));
}

// Below this many products a fork-join (about 1 us) costs more than it saves.
[[maybe_unused]] constexpr int64_t SERIAL_PRODUCTS = 1 << 16;

// emit(t, n, count, sums) for every t < num_rows, with the sums of columns n..n+count in the first lanes, until all
// num_columns are told; row(t) points at row t of x. Threads take whole blocks of outputs, never parts of a sum.
template <class W, class Row, class Emit>
inline void multiply_rows(Row&& row, int64_t num_rows, const W* w, int64_t w_stride, int64_t num_columns,
                          int64_t depth, Emit&& emit) {
  using X = std::remove_cv_t<std::remove_pointer_t<decltype(row(int64_t{0}))>>;
  const int64_t row_bytes = std::max<int64_t>(1, depth * static_cast<int64_t>(sizeof(W)));
  const int64_t width = std::clamp<int64_t>(BLOCK_BYTES / row_bytes / 8 * 8, 8, 256);
  const int64_t blocks = (num_columns + width - 1) / width, slabs = slabs_of(num_rows, blocks);
  // Slabs of equal height: of 256 rows, 96 + 96 + 64 would give one of two threads an eighth more than its half.
  const int64_t height = (num_rows + slabs - 1) / std::max<int64_t>(1, slabs);
#pragma omp parallel for schedule(static) collapse(2) if (num_rows * num_columns * depth >= SERIAL_PRODUCTS)
  for (int64_t slab = 0; slab < slabs; ++slab) {
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t n_end = std::min(num_columns, (block + 1) * width);
      const int64_t t_end = std::min(num_rows, (slab + 1) * height);
      // One strip has nothing to hide a fetch behind; the processor's own prefetcher sees its rows.
      const int64_t passes = (t_end - slab * height + BLOCK_ROWS - 1) / BLOCK_ROWS;
      const int64_t pieces = passes * (width / 4) * ((depth + FETCH_DEPTH - 1) / FETCH_DEPTH);
      const int64_t stride = w_stride * static_cast<int64_t>(sizeof(W));
      Ahead ahead{.row = reinterpret_cast<const char*>(w) + n_end * stride,
                  .stride = stride,
                  .row_bytes = row_bytes,
                  .rows = passes > 1 ? std::min(num_columns - n_end, width) : 0,
                  .lines = width * row_bytes / 64 / std::max<int64_t>(1, pieces) + 1};
      for (int64_t t = slab * height; t < t_end;) {
        // Strips of nearly equal height: six and one would leave one row alone with the whole weight.
        const int64_t left = t_end - t, strips = (left + BLOCK_ROWS - 1) / BLOCK_ROWS;
        const int rows = static_cast<int>((left + strips - 1) / strips);
        with_rows(rows, [&](auto count) {
          constexpr int R = decltype(count)::value, C = block_columns(R);
          const X* x[R];
          for (int r = 0; r < R; ++r) x[r] = row(t + r);
          for (int64_t n = block * width; n < n_end; n += C)
            multiply_block<R, C>(x, w + n * w_stride, w_stride, static_cast<int>(std::min<int64_t>(C, n_end - n)),
                                 depth, ahead,
                                 [&](int r, int c, int number, Float sums) { emit(t + r, n + c, number, sums); });
        });
        t += rows;
      }
    }
  }
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
