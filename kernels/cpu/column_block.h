// Products of many rows with one packed block of 64 output columns, the input dimension outermost.
//
// bf16 operands come as pairs of inputs side by side, [ceil(inputs/2), 64, 2], for vector.h's dot; float operands as
// [inputs, 64], for fma. e4m3 blocks hold pairs too and are expanded, a group of inputs at a time, into a scratch that
// stays in cache while all rows use it; the group's scale then meets the float32 sums, 64 numbers a row.
//
// The op that includes this header says how two operands meet: multiply_add(a, b, sum), for Pairs and for Float.
// A row's sums run over the inputs in order, whatever rows share its strip: batching changes no bit.
#pragma once
#include <algorithm>
#include <type_traits>

#include "float8_words.h"
#include "vector.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

constexpr int COLUMNS = 64;
constexpr int VECTORS = 4;                  // of output columns in registers, per row
constexpr int PASS = VECTORS * Float::N;    // columns a strip covers at once
constexpr int ROWS = Float::N == 16 ? 6 : 2;  // 24 of 32 registers hold sums, or 8 of 16
constexpr int CHUNK = 96;                   // rows whose sums, 24 KB, stay beside an expanded block in cache

// Inputs a step of the inner loop consumes.
template <class Operand>
constexpr int STEP = std::is_same_v<Operand, BFloat16> ? 2 : 1;

inline Pairs spread(const BFloat16* a) { return set1_pair(a); }
inline Float spread(const float* a) { return set1(*a); }
inline Pairs fetch(const BFloat16* b) { return load_pairs(b); }
inline Float fetch(const Half* b) { return load(b); }
inline Float fetch(const float* b) { return load(b); }

// A block's values as the inner loop reads them; only e4m3 needs the scratch.
inline const BFloat16* expand(const BFloat16* p, int64_t, BFloat16*) { return p; }
inline const Half* expand(const Half* p, int64_t, float*) { return p; }
inline const float* expand(const float* p, int64_t, float*) { return p; }
inline const BFloat16* expand(const Float8* p, int64_t inputs, BFloat16* to) {
  const int64_t count = (inputs + 1) / 2 * 2 * COLUMNS;
  for (int64_t i = 0; i < count; i += 2 * Float::N) widen(p + i, to + i);
  return to;
}
inline const float* expand(const Float8* p, int64_t inputs, float* to) {
  float pairs[2 * COLUMNS];
  for (int64_t k = 0; k < inputs; k += 2, p += 2 * COLUMNS, to += 2 * COLUMNS) {
    for (int i = 0; i < 2 * COLUMNS; i += Float::N) store(pairs + i, load(p + i));
    for (int c = 0; c < COLUMNS; ++c) {
      to[c] = pairs[2 * c];
      to[COLUMNS + c] = pairs[2 * c + 1];
    }
  }
  return to - (inputs + 1) / 2 * 2 * COLUMNS;
}

// What scales a group's sums: a factor a column, a factor a row, either may be null.
struct GroupScale {
  const float* column;      // [64]
  const float* const* row;  // [R], each its row's factor
};

// total[r][c] (+)= scale * sum_k rows[r][k] * values[k][c]
template <int R, class Operand, class Values>
inline void multiply_strip(const Operand* const* rows, const Values* values, int64_t steps, bool first,
                           const GroupScale& scale, float* total) {
  constexpr int step = STEP<Operand>;
  for (int c = 0; c < COLUMNS; c += PASS) {
    Float sum[R][VECTORS];
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < VECTORS; ++j) sum[r][j] = zero();
    const Values* b = values + c * step;
    for (int64_t s = 0; s < steps; ++s, b += COLUMNS * step) {
      const auto b0 = fetch(b), b1 = fetch(b + Float::N * step);
      const auto b2 = fetch(b + 2 * Float::N * step), b3 = fetch(b + 3 * Float::N * step);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const auto a = spread(rows[r] + s * step);
        sum[r][0] = multiply_add(a, b0, sum[r][0]);
        sum[r][1] = multiply_add(a, b1, sum[r][1]);
        sum[r][2] = multiply_add(a, b2, sum[r][2]);
        sum[r][3] = multiply_add(a, b3, sum[r][3]);
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int j = 0; j < VECTORS; ++j) {
        float* at = total + r * COLUMNS + c + j * Float::N;
        const Float before = first ? zero() : load(at);
        if (scale.column == nullptr && scale.row == nullptr) {
          store(at, before + sum[r][j]);
          continue;
        }
        Float factor = scale.column ? load(scale.column + c + j * Float::N) : set1(1.0f);
        if (scale.row) factor = factor * set1(*scale.row[r]);
        store(at, fma(factor, sum[r][j], before));
      }
    }
  }
}

template <int R, class... Args>
inline void multiply_rows(int rows, const Args&... args) {
  if constexpr (R > 1) {
    if (rows < R) return multiply_rows<R - 1>(rows, args...);
  }
  multiply_strip<R>(args...);
}

// One block and how its inputs are grouped.
template <class Stored>
struct Block {
  const Stored* values;
  const float* scale;  // [groups, 64] or null
  int64_t inputs;
  int64_t group;  // inputs that share a scale; `inputs` where nothing is scaled
};

// Multiplies `count` rows by a block. row(i) is row i's operand, row_scale(i) its factors by group or null.
// emit(first, n, total) gets finished sums, [n, 64], in chunks.
template <class Operand, class Stored, class Row, class RowScale, class Emit>
inline void multiply(const Block<Stored>& block, int64_t count, Row row, RowScale row_scale, Operand* scratch,
                     float* total, Emit emit) {
  const bool scaled_rows = row_scale(0) != nullptr;
  for (int64_t start = 0; start < count; start += CHUNK) {
    const int n = static_cast<int>(std::min<int64_t>(CHUNK, count - start));
    for (int64_t k = 0, g = 0; k < block.inputs; k += block.group, ++g) {
      const int64_t inputs = std::min(block.group, block.inputs - k);
      const auto* values = expand(block.values + k * COLUMNS, inputs, scratch);
      const int64_t steps = (inputs + STEP<Operand> - 1) / STEP<Operand>;
      // Strips as even as possible: 7 rows are 4 and 3, not 6 and 1.
      const int strips = (n + ROWS - 1) / ROWS;
      for (int s = 0, i = 0; s < strips; ++s) {
        const int size = (n - i + strips - s - 1) / (strips - s);
        const Operand* rows[ROWS];
        const float* factors[ROWS];
        for (int r = 0; r < size; ++r) {
          rows[r] = row(start + i + r) + k;
          if (scaled_rows) factors[r] = row_scale(start + i + r) + g;
        }
        const GroupScale scale{block.scale ? block.scale + g * COLUMNS : nullptr, scaled_rows ? factors : nullptr};
        multiply_rows<ROWS>(size, rows, values, steps, k == 0, scale, total + i * COLUMNS);
        i += size;
      }
    }
    emit(start, n, total);
  }
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
