// A mixture's experts on AMX tiles: bf16 weights; the other dtypes run the AVX-512 kernel.
//
// A packed block has pairs of inputs of 64 columns side by side: sixteen of its rows are the right operands of four tiles, as
// they lie. Rows of slots are the left operands, copied once so that those of an expert lie evenly. A sum runs over the
// inputs in order whatever shares its tile: batching changes no bit.
#include "experts.h"

#include <algorithm>
#include <cstring>

#include "experts_mixture.h"
#include "tiles.h"

namespace minimax_m2::amx {
namespace {

constexpr int INPUTS = 2 * SIDE;  // bf16 values in a row of a tile
constexpr int64_t BLOCK_ROW_BYTES = COLUMNS * 2 * sizeof(BFloat16);
constexpr int64_t SUM_ROW_BYTES = COLUMNS * sizeof(float);

constexpr int64_t whole_steps(int64_t inputs) { return divided_up(inputs, INPUTS) * INPUTS; }

// Sums of 16 or 32 rows, `stride` apart, with a block: [rows][64]. `tail` holds the block's inputs behind the last whole
// step, and zeros.
template <bool TWO>
inline void multiply_tiles(const BFloat16* rows, int64_t stride, const BFloat16* values, const BFloat16* tail,
                           int64_t inputs, float* sums) {
  const auto row_bytes = static_cast<size_t>(stride) * sizeof(BFloat16);
  for (int c = 0; c < COLUMNS; c += 2 * SIDE) {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (TWO) {
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int64_t k = 0; k < inputs; k += INPUTS) {
      const BFloat16* right = (k + INPUTS <= inputs ? values + k * COLUMNS : tail) + 2 * c;
      _tile_loadd(4, rows + k, row_bytes);
      _tile_loadd(6, right, BLOCK_ROW_BYTES);
      _tile_loadd(7, right + 2 * SIDE, BLOCK_ROW_BYTES);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (TWO) {
        _tile_loadd(5, rows + SIDE * stride + k, row_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, sums + c, SUM_ROW_BYTES);
    _tile_stored(1, sums + c + SIDE, SUM_ROW_BYTES);
    if constexpr (TWO) {
      _tile_stored(2, sums + SIDE * COLUMNS + c, SUM_ROW_BYTES);
      _tile_stored(3, sums + SIDE * COLUMNS + c + SIDE, SUM_ROW_BYTES);
    }
  }
}

// Rows of x by slot, padded with zeros to whole steps, and products with blocks of 64 columns.
class TileProducts {
 public:
  using Operand = BFloat16;
  using Stored = BFloat16;
  using Registers = Tiles;
  static constexpr int64_t SPARE_ROWS = 2 * SIDE - 1;  // that a last pair of tiles reads and nobody uses

  TileProducts(const ExpertsArgs& args, const Plan& plan)
      : args_(args), plan_(plan), rows_(buffer<BFloat16>((num_copies() + SPARE_ROWS) * stride_)) {}

  int64_t num_copies() const { return static_cast<int64_t>(plan_.token.size()); }
  void copy(int64_t slot) {
    BFloat16* to = rows_.get() + slot * stride_;
    const BFloat16* from = static_cast<const BFloat16*>(args_.x) + plan_.token[slot] * args_.x_stride;
    std::memcpy(to, from, static_cast<size_t>(args_.hidden) * sizeof(BFloat16));
    std::fill(to + args_.hidden, to + whole_steps(args_.hidden), BFloat16{0});
    publish(to);
  }
  const BFloat16* row(int64_t slot) const { return rows_.get() + slot * stride_; }

  template <class Row, class RowScale, class Emit>
  static void multiply(const Block<BFloat16>& block, int64_t count, Row row, RowScale, BFloat16*, float* total,
                       Emit emit) {
    alignas(64) BFloat16 tail[INPUTS * COLUMNS] = {};
    const int64_t whole = block.inputs / INPUTS * INPUTS;
    const auto rest = static_cast<size_t>(even(block.inputs - whole) * COLUMNS) * sizeof(BFloat16);
    std::memcpy(tail, block.values + whole * COLUMNS, rest);
    publish(tail);
    const int64_t stride = row(1) - row(0);
    for (int64_t start = 0; start < count; start += 2 * SIDE) {
      const int n = static_cast<int>(std::min<int64_t>(2 * SIDE, count - start));
      if (n > SIDE) multiply_tiles<true>(row(start), stride, block.values, tail, block.inputs, total);
      else multiply_tiles<false>(row(start), stride, block.values, tail, block.inputs, total);
      emit(start, n, total);
    }
  }

 private:
  const ExpertsArgs& args_;
  const Plan& plan_;
  const int64_t stride_ = spread_stride<BFloat16>(whole_steps(args_.hidden));
  Buffer<BFloat16> rows_;
};

}  // namespace

int64_t experts(const ExpertsArgs& args) {
  if (!has_tile_product(args.weight_dtype)) return avx512_bf16::experts(args);
  Plan plan;
  const int64_t bad = sort_slots(args, plan);
  if (bad < 0) Mixture<TileProducts>(args, plan).run();
  return bad;
}

}  // namespace minimax_m2::amx
