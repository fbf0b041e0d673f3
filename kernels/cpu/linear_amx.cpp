// A dense layer on AMX tiles. Only bf16 has a tile product here; the other dtypes run the AVX-512 kernel.
//
// A tile product reads its left operand by rows of 32 inputs and its right one by pairs of inputs, 16 columns side by side.
// The weight is the left operand: its rows lie as a tile wants them and are never repacked. The tokens are the right one,
// transposed pair by pair once a call. A sum runs over the inputs in order whatever shares its tile: batching changes no bit.
#include "linear.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "dispatch.h"
#include "tiles.h"
#include "vector.h"

namespace minimax_m2::amx {
namespace {

constexpr int INPUTS = 2 * SIDE;    // bf16 values in a row of a tile
constexpr int OUTPUTS = 2 * SIDE;   // in a block: two tiles of weight

// Sixteen tokens' inputs k..k+32 as [16 pairs][16 tokens]; what lies past the last token or input is 0.
void transpose(const LinearArgs& args, int64_t first, int64_t k, uint32_t* tile) {
  const int tokens = static_cast<int>(std::min<int64_t>(SIDE, args.num_tokens - first));
  const int inputs = static_cast<int>(std::min<int64_t>(INPUTS, args.depth - k));
  std::memset(tile, 0, TILE * sizeof(uint32_t));
  for (int t = 0; t < tokens; ++t) {
    const BFloat16* x = static_cast<const BFloat16*>(args.x) + (first + t) * args.x_stride + k;
    uint32_t pairs[SIDE] = {};
    std::memcpy(pairs, x, static_cast<size_t>(inputs) * sizeof(BFloat16));
    for (int p = 0; p < SIDE; ++p) tile[p * SIDE + t] = pairs[p];
  }
}

struct WeightTiles {
  const BFloat16* rows;
  int64_t stride;
};

// The 32 rows of weight from output n on, inputs k..k+32: in place, or copied with zeros where they end earlier.
inline WeightTiles weight_at(const LinearArgs& args, int64_t n, int64_t k, BFloat16* room) {
  const BFloat16* weight = static_cast<const BFloat16*>(args.weight) + n * args.weight_stride + k;
  if (n + OUTPUTS <= args.num_outputs && k + INPUTS <= args.depth) return {weight, args.weight_stride};
  const int64_t rows = std::min<int64_t>(OUTPUTS, args.num_outputs - n);
  const int64_t inputs = std::min<int64_t>(INPUTS, args.depth - k);
  std::memset(room, 0, OUTPUTS * INPUTS * sizeof(BFloat16));
  for (int64_t r = 0; r < rows; ++r)
    std::memcpy(room + r * INPUTS, weight + r * args.weight_stride, static_cast<size_t>(inputs) * sizeof(BFloat16));
  publish(room);
  return {room, INPUTS};
}

// Sums of 32 outputs from n on with 16 or 32 tokens: [output tile][token tile][16 outputs][16 tokens].
template <bool TWO>
inline void multiply(const LinearArgs& args, int64_t n, const uint32_t* tokens, int64_t depth_tiles, float* sums) {
  alignas(64) BFloat16 room[OUTPUTS * INPUTS];
  const uint32_t* others = tokens + depth_tiles * TILE;
  _tile_zero(0);
  _tile_zero(2);
  if constexpr (TWO) {
    _tile_zero(1);
    _tile_zero(3);
  }
  for (int64_t i = 0; i < depth_tiles; ++i) {
    const WeightTiles weight = weight_at(args, n, i * INPUTS, room);
    const auto stride = static_cast<size_t>(weight.stride) * sizeof(BFloat16);
    _tile_loadd(4, weight.rows, stride);
    _tile_loadd(5, weight.rows + SIDE * weight.stride, stride);
    _tile_loadd(6, tokens + i * TILE, ROW_BYTES);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (TWO) {
      _tile_loadd(7, others + i * TILE, ROW_BYTES);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, ROW_BYTES);
  _tile_stored(2, sums + 2 * TILE, ROW_BYTES);
  if constexpr (TWO) {
    _tile_stored(1, sums + TILE, ROW_BYTES);
    _tile_stored(3, sums + 3 * TILE, ROW_BYTES);
  }
}

// Rounds one tile of sums, a column per token, into the rows of out.
template <class Out>
inline void emit(const LinearArgs& args, int64_t n, int64_t first, const float* sums) {
  const __m512i column = _mm512_mullo_epi32(iota().v, _mm512_set1_epi32(SIDE));
  const int lanes = static_cast<int>(std::min<int64_t>(SIDE, args.num_outputs - n));
  const int tokens = static_cast<int>(std::min<int64_t>(SIDE, args.num_tokens - first));
  for (int t = 0; t < tokens; ++t) {
    Out* out = static_cast<Out*>(args.out) + (first + t) * args.num_outputs + n;
    store(out, Float{_mm512_i32gather_ps(column, sums + t, sizeof(float))}, lanes);
  }
}

template <class Out>
void multiply_tiles(const LinearArgs& args) {
  const int64_t depth_tiles = (args.depth + INPUTS - 1) / INPUTS, token_tiles = (args.num_tokens + SIDE - 1) / SIDE;
  const int64_t blocks = (args.num_outputs + OUTPUTS - 1) / OUTPUTS;
  std::vector<uint32_t> tokens(static_cast<size_t>(token_tiles * depth_tiles * TILE));
#pragma omp parallel if (!serial_products(args.num_tokens * args.num_outputs * args.depth))
  {
    const Tiles tiles;
    alignas(64) float sums[4 * TILE];
#pragma omp for collapse(2) schedule(static)
    for (int64_t t = 0; t < token_tiles; ++t)
      for (int64_t i = 0; i < depth_tiles; ++i)
        transpose(args, t * SIDE, i * INPUTS, tokens.data() + (t * depth_tiles + i) * TILE);
#pragma omp for schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t n = block * OUTPUTS;
      for (int64_t t = 0; t < token_tiles; t += 2) {
        const bool two = t + 1 < token_tiles;
        const uint32_t* from = tokens.data() + t * depth_tiles * TILE;
        if (two) multiply<true>(args, n, from, depth_tiles, sums);
        else multiply<false>(args, n, from, depth_tiles, sums);
        for (int64_t m = 0; m < 2 && n + m * SIDE < args.num_outputs; ++m)
          for (int64_t i = 0; i < (two ? 2 : 1); ++i)
            emit<Out>(args, n + m * SIDE, (t + i) * SIDE, sums + (2 * m + i) * TILE);
      }
    }
  }
}

}  // namespace

void linear(const LinearArgs& args) {
  if (!has_tile_product(args.dtype)) return avx512_bf16::linear(args);
  with_float(args.out_dtype,
             [&](auto* tag) { multiply_tiles<std::remove_pointer_t<decltype(tag)>>(args); });
}

}  // namespace minimax_m2::amx
