// Products of many rows with one packed block of 64 output columns, the input dimension outermost.
//
// bf16 operands come as pairs of inputs side by side, [ceil(inputs/2), 64, 2], for vector.h's dot; float operands as
// [inputs, 64], for fma. e4m3 blocks hold pairs too, in the order that widens without crossing lanes: of each 32
// columns, four of the first sixteen, then four of the others, and so on (column_packing.py).
//
// A block is used a slab of inputs at a time, about 512, which stays in cache while all rows use it and the next one is
// fetched: of the block, or of the one that the thread takes afterwards. The sums of each group of inputs that share a scale, or of a slab, meet their scale and are added to those
// of the groups before. A row's sums run over the inputs in one order, whatever rows share its strip: batching changes no
// bit.
#pragma once
#include <algorithm>
#include <type_traits>

#include "vector.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

constexpr int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int COLUMNS = 64;
constexpr int VECTORS = 4;                  // of output columns in registers, per row
constexpr int PASS = VECTORS * Float::N;    // columns a strip covers at once
constexpr int ROWS = Float::N == 16 ? 6 : 2;  // 24 of 32 registers hold sums, or 8 of 16
constexpr int CHUNK = 96;                   // rows whose sums, 24 KB, stay beside a slab in cache
constexpr int64_t SLAB = 512;               // inputs; 64 KB of bf16
// Inputs of a slab that one strip of e4m3 uses once: what lies 8 KB ahead arrives in time, what lies further pays nothing.
constexpr int64_t STREAMED_SLAB = 128;
// From so many rows on, computing takes long enough to fetch the next slab meanwhile. A line of e4m3 takes as long as two
// of bf16, so the processor's own prefetcher falls behind at once.
template <class Stored>
constexpr int FETCH_AHEAD_ROWS = sizeof(Stored) == 1 ? 1 : 7;
// Strips that cover the block widen e4m3 in registers, each again: any number of them where that hides behind the
// products, else a few. Otherwise a scratch holds the slab for all.
template <class Operand>
constexpr bool WIDENS_IN_REGISTERS = PASS == COLUMNS && std::is_same_v<Operand, BFloat16>;
constexpr int FEW_STRIPS = CHEAP_WIDENING ? divided_up(CHUNK, ROWS) : 3;

inline Float multiply_add(Pairs a, Pairs b, Float sum) { return dot(sum, a, b); }
inline Float multiply_add(Float a, Float b, Float sum) { return fma(a, b, sum); }

// Inputs a step of the inner loop consumes.
template <class Operand>
constexpr int STEP = std::is_same_v<Operand, BFloat16> ? 2 : 1;
template <class Operand>
using Vector = std::conditional_t<std::is_same_v<Operand, BFloat16>, Pairs, Float>;

inline Pairs spread(const BFloat16* a) { return set1_pair(a); }
inline Float spread(const float* a) { return set1(*a); }

// One step's values of PASS columns.
inline void fetch(const BFloat16* b, Pairs (&to)[VECTORS]) {
  for (int j = 0; j < VECTORS; ++j) to[j] = load_pairs(b + 2 * j * Float::N);
}
template <class Values>
inline void fetch(const Values* b, Float (&to)[VECTORS]) {
  for (int j = 0; j < VECTORS; ++j) to[j] = load(b + j * Float::N);
}
inline void fetch(const Float8* b, Pairs (&to)[VECTORS]) {
  load_pairs(b, to[0], to[1]);
  load_pairs(b + COLUMNS, to[2], to[3]);
}

// What scales a slab's sums, a group of inputs at a time: factors of columns and of rows, either may be null.
struct SlabScale {
  const float* column;      // [groups, width]
  int64_t width;            // 64, a factor a column, or 2, one a half of the block
  const float* const* row;  // [R][groups]
  int64_t steps;            // of a group
};

// total[r][c] += sum_groups scale * sum_k rows[r][k] * values[k][c], while a step fetches LINES cache lines from `ahead`
// on.
template <int R, int LINES, class Operand, class Values>
[[gnu::noinline]] void multiply_strip(const Operand* const* rows, const Values* values, int64_t steps,
                                      const SlabScale& scale, const char* ahead, float* total) {
  constexpr int step = STEP<Operand>;
  // Copies, which no store below can change.
  const Operand* row[R];
  for (int r = 0; r < R; ++r) row[r] = rows[r];
  const auto [column_scale, scale_width, row_scale, group_steps] = scale;
  for (int c = 0; c < COLUMNS; c += PASS) {
    const Values* b = values + c * step;
    for (int64_t s = 0, group = 0; s < steps; ++group) {
      Float sum[R][VECTORS];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j) sum[r][j] = zero();
      for (const int64_t end = std::min(steps, s + group_steps); s < end; ++s, b += COLUMNS * step) {
#pragma GCC unroll 8
        for (int line = 0; line < LINES; ++line) __builtin_prefetch(ahead + (s * LINES + line) * 64, 0, 2);
        Vector<Operand> column[VECTORS];
        fetch(b, column);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const auto a = spread(row[r] + s * step);
#pragma GCC unroll 8
          for (int j = 0; j < VECTORS; ++j) sum[r][j] = multiply_add(a, column[j], sum[r][j]);
        }
      }
      // Without this GCC carries all of total in the stack from group to group: a second store each.
      asm volatile("" : : "r"(total) : "memory");
      if (column_scale == nullptr && row_scale == nullptr) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          float* at = total + r * COLUMNS + c;
#pragma GCC unroll 8
          for (int j = 0; j < VECTORS; ++j, at += Float::N) store(at, load(at) + sum[r][j]);
        }
        continue;
      }
      Float factor[VECTORS];
      for (int j = 0, at = c; j < VECTORS; ++j, at += Float::N) {
        const float* own = column_scale + group * scale_width;
        if (column_scale == nullptr) factor[j] = set1(1.0f);
        else factor[j] = scale_width == COLUMNS ? load(own + at) : set1(own[2 * at / COLUMNS]);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Float own = set1(row_scale ? row_scale[r][group] : 1.0f);
        float* at = total + r * COLUMNS + c;
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j, at += Float::N) store(at, fma(factor[j] * own, sum[r][j], load(at)));
      }
    }
  }
}

template <int R, int LINES, class Operand, class... Args>
inline void multiply_rows(int rows, const Operand* const* operands, const Args&... args) {
  if constexpr (R > 1) {
    if (rows < R) return multiply_rows<R - 1, LINES>(rows, operands, args...);
  }
  multiply_strip<R, LINES>(operands, args...);
}

// One block and how its inputs are grouped.
template <class Stored>
struct Block {
  const Stored* values;
  const float* scale;  // [groups, scale_width] or null
  int64_t scale_width;
  int64_t inputs;
  int64_t group;       // inputs that share a scale; SLAB where nothing is scaled
  const Stored* next;  // the block that this thread takes afterwards, as far as it knows
};

// Inputs of a slab: whole groups, about `wanted`.
constexpr int64_t slab_of(int64_t group, int64_t wanted = SLAB) { return std::max<int64_t>(1, wanted / group) * group; }

// Blocks that a thread takes in a row, so that what it fetches past the end of one is the next: few enough for threads to
// come back eight times.
inline int64_t run_of(int64_t blocks, int64_t threads) { return std::clamp<int64_t>(blocks / (8 * threads), 1, 4); }

// A slab as strips read it in a scratch: e4m3 widened.
inline void widen_slab(const Float8* p, int64_t inputs, BFloat16* to) {
  constexpr int UNIT = 64;  // codes of one pair row and 32 columns
  const int64_t count = (inputs + 1) / 2 * 2 * COLUMNS;
  for (int64_t unit = 0; unit < count; unit += UNIT) {
#pragma GCC unroll 4
    for (int i = 0; i < UNIT; i += 4 * Float::N) {
      Pairs first, second;
      load_pairs(p + unit + i, first, second);
      store_pairs(to + unit + i / 2, first);
      store_pairs(to + unit + i / 2 + UNIT / 2, second);
    }
  }
}
inline void widen_slab(const Float8* p, int64_t inputs, float* to) {
  BFloat16 pairs[2 * COLUMNS];
  for (int64_t k = 0; k < inputs; k += 2, p += 2 * COLUMNS, to += 2 * COLUMNS) {
    widen_slab(p, 2, pairs);
    for (int c = 0; c < COLUMNS; c += Float::N) {
      store(to + c, even_values(load_pairs(pairs + 2 * c)));
      store(to + COLUMNS + c, odd_values(load_pairs(pairs + 2 * c)));
    }
  }
}

// Multiplies `count` rows by a block. row(i) is row i's operand, row_scale(i) its factors by group or null.
// emit(first, n, total) gets finished sums, [n, 64], in chunks.
template <class Operand, class Stored, class Row, class RowScale, class Emit>
inline void multiply(const Block<Stored>& block, int64_t count, Row row, RowScale row_scale, Operand* scratch,
                     float* total, Emit emit) {
  constexpr int step = STEP<Operand>, lines_a_step = COLUMNS * step * static_cast<int>(sizeof(Stored)) / 64;
  const bool scaled_rows = row_scale(0) != nullptr;
  const int64_t group_steps = divided_up(block.group, step);
  for (int64_t start = 0; start < count; start += CHUNK) {
    const int n = static_cast<int>(std::min<int64_t>(CHUNK, count - start));
    const int strips = (n + ROWS - 1) / ROWS;
    // Where nothing is scaled the slab is what is summed at once, so it hangs on nothing.
    const bool streamed = std::is_same_v<Stored, Float8> && strips == 1 && block.scale != nullptr;
    const int64_t slab = slab_of(block.group, streamed ? STREAMED_SLAB : SLAB);
    std::fill_n(total, n * COLUMNS, 0.0f);
    for (int64_t k = 0; k < block.inputs; k += slab) {
      const int64_t g = k / block.group, inputs = std::min(slab, block.inputs - k), steps = divided_up(inputs, step);
      const Stored* values = block.values + k * COLUMNS;
      const Stored* after = values + steps * step * COLUMNS;
      if (k + slab >= block.inputs) after = start + CHUNK < count ? block.values : block.next;
      const char* ahead = reinterpret_cast<const char*>(after);
      const auto multiply_strips = [&](const auto* columns) {
        // Strips as even as possible: 7 rows are 4 and 3, not 6 and 1.
        for (int s = 0, i = 0; s < strips; ++s) {
          const int size = (n - i + strips - s - 1) / (strips - s);
          const Operand* rows[ROWS];
          const float* factors[ROWS];
          for (int r = 0; r < size; ++r) {
            rows[r] = row(start + i + r) + k;
            if (scaled_rows) factors[r] = row_scale(start + i + r) + g;
          }
          const float* own = block.scale ? block.scale + g * block.scale_width : nullptr;
          const SlabScale scale{own, block.scale_width, scaled_rows ? factors : nullptr, group_steps};
          float* sums = total + i * COLUMNS;
          // The strips share the lines of the next slab as evenly as whole lines a step allow; two at most, as one strip
          // of bf16 has too few rows.
          const int first_line = s * lines_a_step / strips, last_line = (s + 1) * lines_a_step / strips;
          const char* next = ahead + first_line * steps * 64;
          switch (n >= FETCH_AHEAD_ROWS<Stored> ? last_line - first_line : 0) {
            case 0: multiply_rows<ROWS, 0>(size, rows, columns, steps, scale, next, sums); break;
            case 1: multiply_rows<ROWS, 1>(size, rows, columns, steps, scale, next, sums); break;
            default: multiply_rows<ROWS, 2>(size, rows, columns, steps, scale, next, sums);
          }
          i += size;
        }
      };
      if constexpr (!std::is_same_v<Stored, Float8>) {
        multiply_strips(values);
      } else {
        if constexpr (WIDENS_IN_REGISTERS<Operand>) {
          if (strips <= FEW_STRIPS) {
            multiply_strips(values);
            continue;
          }
        }
        widen_slab(values, inputs, scratch);
        multiply_strips(static_cast<const Operand*>(scratch));
      }
    }
    emit(start, n, total);
  }
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
