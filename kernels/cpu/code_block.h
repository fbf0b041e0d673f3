// Products of many rows of int8 codes with one packed block of 64 output columns, [ceil(inputs/4), 64, 4]: four inputs of a
// column side by side, as byte products take them. Sums of integers are exact, so no order of strips, slabs or threads
// changes a bit.
#pragma once
#include <algorithm>
#include <cstring>

#include "column_block.h"
#include "dispatch.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

// What a row's codes are held above themselves.
constexpr int32_t CODE_BIAS = multiplies_bytes(Isa::MINIMAX_M2_ISA) ? 128 : 0;
static_assert(std::is_unsigned_v<Code> == multiplies_bytes(Isa::MINIMAX_M2_ISA));

constexpr int CODE_STEP = 4;                               // inputs that a step of the inner loop consumes
constexpr int CODE_VECTORS = Float::N == 16 ? 4 : 2;       // of output columns in registers, per row
constexpr int CODE_PASS = CODE_VECTORS * Float::N;
// Widened codes of a weight take two registers a vector: 24 sums of 32 registers, 16 of 32, or 8 of 16.
constexpr int CODE_ROWS = multiplies_bytes(Isa::MINIMAX_M2_ISA) ? 6 : 4;
constexpr int64_t CODE_SLAB = 512;                         // inputs; 32 KB
constexpr int CODE_LINES = COLUMNS * CODE_STEP / 64;       // cache lines of a step

// total[r][c] += sum_k rows[r][k] * values[k][c], while a step fetches LINES cache lines from `ahead` on.
template <int R, int LINES>
[[gnu::noinline]] void multiply_code_strip(const Code* const* rows, const int8_t* values, int64_t steps,
                                           const int8_t* ahead, int32_t* total) {
  // Copies, which no store below can change.
  const Code* row[R];
  for (int r = 0; r < R; ++r) row[r] = rows[r];
  for (int c = 0; c < COLUMNS; c += CODE_PASS) {
    Int sum[R][CODE_VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < CODE_VECTORS; ++j) sum[r][j] = load_int(total + r * COLUMNS + c + j * Float::N);
    const int8_t* b = values + c * CODE_STEP;
    for (int64_t s = 0; s < steps; ++s, b += COLUMNS * CODE_STEP) {
#pragma GCC unroll 8
      for (int line = 0; line < LINES; ++line) __builtin_prefetch(ahead + (s * LINES + line) * 64, 0, 2);
      Codes column[CODE_VECTORS];
#pragma GCC unroll 8
      for (int j = 0; j < CODE_VECTORS; ++j) column[j] = load_codes(b + j * Float::N * CODE_STEP);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Codes a = set1_codes(row[r] + s * CODE_STEP);
#pragma GCC unroll 8
        for (int j = 0; j < CODE_VECTORS; ++j) sum[r][j] = dot(sum[r][j], a, column[j]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < CODE_VECTORS; ++j) store_int(total + r * COLUMNS + c + j * Float::N, sum[r][j]);
  }
}

template <int R, int LINES, class... Args>
inline void multiply_code_rows(int count, const Code* const* rows, const Args&... args) {
  if constexpr (R > 1) {
    if (count < R) return multiply_code_rows<R - 1, LINES>(count, rows, args...);
  }
  multiply_code_strip<R, LINES>(rows, args...);
}

struct CodeBlock {
  const int8_t* values;
  const int32_t* start;  // [64], where the sum of biased codes begins
  int64_t inputs;
  const int8_t* next;    // the block that this thread takes afterwards, as far as it knows
};

// Multiplies `count` rows by a block; row(i) is row i's codes. emit(first, n, total) gets finished sums, [n, 64], in chunks.
template <class Row, class Emit>
inline void multiply_codes(const CodeBlock& block, int64_t count, Row row, int32_t* total, Emit emit) {
  for (int64_t start = 0; start < count; start += CHUNK) {
    const int n = static_cast<int>(std::min<int64_t>(CHUNK, count - start));
    const int strips = static_cast<int>(divided_up(n, CODE_ROWS));
    const int64_t slab = strips == 1 ? STREAMED_SLAB : CODE_SLAB;
    for (int r = 0; r < n; ++r) {
      if (CODE_BIAS != 0) std::memcpy(total + r * COLUMNS, block.start, COLUMNS * sizeof(int32_t));
      else std::fill_n(total + r * COLUMNS, COLUMNS, 0);
    }
    for (int64_t k = 0; k < block.inputs; k += slab) {
      const int64_t steps = divided_up(std::min(slab, block.inputs - k), CODE_STEP);
      const int8_t* values = block.values + k * COLUMNS;
      const int8_t* after = values + steps * CODE_STEP * COLUMNS;
      if (k + slab >= block.inputs) after = start + CHUNK < count ? block.values : block.next;
      // Strips as even as possible: 7 rows are 4 and 3, not 6 and 1.
      for (int s = 0, i = 0; s < strips; ++s) {
        const int size = (n - i + strips - s - 1) / (strips - s);
        const Code* rows[CODE_ROWS];
        for (int r = 0; r < size; ++r) rows[r] = row(start + i + r) + k;
        int32_t* sums = total + i * COLUMNS;
        // The first strips fetch the next slab: one all of it, or four a quarter each.
        if (strips < CODE_LINES) {
          if (s == 0) multiply_code_rows<CODE_ROWS, CODE_LINES>(size, rows, values, steps, after, sums);
          else multiply_code_rows<CODE_ROWS, 0>(size, rows, values, steps, after, sums);
        } else if (s < CODE_LINES) {
          multiply_code_rows<CODE_ROWS, 1>(size, rows, values, steps, after + s * steps * 64, sums);
        } else {
          multiply_code_rows<CODE_ROWS, 0>(size, rows, values, steps, after, sums);
        }
        i += size;
      }
    }
    emit(start, n, total);
  }
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
