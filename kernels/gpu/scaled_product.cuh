// What the products of e4m3 rows share: their arguments, which rows and columns a program makes, the ring that feeds it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "divisor.cuh"
#include "hopper.cuh"

namespace {

// Channels of a step: a group of scales, and a row of the copy engine's swizzle.
constexpr int kStep = 128;
constexpr int kFetchers = 128;
// Rows of x that the copy engine fetches at a time: rows that nobody needs are fetched up to a multiple.
constexpr int kBoxRows = 16;

enum Mode { kDense, kGateUp, kDown };
enum Ids { kInt32, kInt64, kWords };
enum Out { kFloat32, kBfloat16, kFloat16 };
// Whose rows are the tensor core's, the weight's (narrow) or x's; ahead, the next products are made while the last are
// added up, for which wide tiles have no registers. Pairs of programs, which are clusters, make a tile together: each has
// half of the columns, and fetches half of the rows of x for both.
enum Form { kNarrow, kWide, kAhead, kPair };

// Rows lie as they are multiplied: tokens of a dense product; slots in moe_align's order, or as they come, each alone.
struct Product {
  const float* x_scale;        // [rows of x, groups]
  const float* w_scale;        // [experts, scale_rows, groups]
  const int* sorted_slots;     // moe_align's, or null: a block is one slot
  const int* block_experts;
  const int* num_padded;
  const void* ids;             // [slots], read where nothing is sorted, and for words' weights
  const int* expert_map;
  const float* weights;        // [slots], or null
  void* out;                   // down's rows are slots, gate and up's as x's
  float* out_scale;            // of a coded act
  int x_scale_stride, w_scale_stride;
  int scale_rows, weight_rows; // of an expert
  int rows;                    // tokens of a dense product, else slots
  int top_k, width;            // width: columns of the result
  int parts, steps;            // of a row's sums, and of each
  int columns;                 // tiles that make a row
  int num_experts, num_mapped, ids_kind, out_kind;
  int prefetch;                // which tiles there are is known before the kernel ahead has ended
  int joined;                  // programs of a tile's parts are a cluster, which adds them up
  Divisor by_parts, by_columns, by_top_k;
};

// A program's tile: rows of x, and columns of the result in blocks of the weight's rows: gate's and up's, or neighbours.
template <Mode mode, int rows, int blocks, int columns, int warpgroups, int stages, Form form>
struct Shape {
  static constexpr Mode kMode = mode;
  static constexpr Form kForm = form;
  static constexpr int kRows = rows, kBlocks = blocks, kColumns = columns, kWarpgroups = warpgroups, kStages = stages;
  static constexpr int kXBytes = kRows * kStep, kBlockBytes = kColumns * kStep, kWBytes = kBlocks * kBlockBytes;
  // Threads that add up ahead load their scales themselves.
  static constexpr bool kOwnScales = kForm == kAhead || kForm == kPair;
  static constexpr int kScales = kOwnScales ? 0 : kRows + 2;
  static constexpr int kArrivals = kOwnScales ? 1 : kFetchers + 1;
  // Programs that make a tile together.
  static constexpr int kSharing = kForm == kPair ? 2 : 1;
  // Rows of x that are fetched at once: of tokens all, as one thread takes 30 ns for each copy; of slots few.
  static constexpr int kBox = kOwnScales && kMode == kDense ? kRows / kSharing : kBoxRows * kSharing;
  // Where each warp turns results of 16 bits, 16 rows by 64 columns at a time.
  static constexpr bool kTurns =
      kOwnScales && kColumns % 64 == 0 && (kMode == kDense || (kMode == kDown && kForm == kPair));
  static constexpr int kTurnBytes = kTurns ? 4 * kWarpgroups * 2048 : 0;
  static constexpr int kTileColumns = kSharing * (kMode == kGateUp ? kColumns : kBlocks * kColumns);
  static constexpr int kThreads = 128 * kWarpgroups + kFetchers;
  // Swizzled tiles begin at multiples of 1024 bytes.
  static constexpr int kBytes = 1024 + kStages * (kXBytes + kWBytes + kScales * 4 + 16) + kTurnBytes;
  // Two programs share a multiprocessor where both fit.
  static constexpr int kPrograms = kBytes <= 113 * 1024 ? 2 : 1;
};

// Tiles whose parts may be joined: row 0 in the first program of a cluster, or all rows, in each of two half the columns.
template <class S>
constexpr bool kJoins = S::kRows == kBoxRows;
template <class S>
constexpr bool kHalves = S::kForm == kAhead && S::kMode == kDense;

struct Tile {
  int block, column, part, expert;
};

__device__ __forceinline__ int expert_of(const Product& p, int slot) {
  long long expert = p.ids_kind == kInt64   ? static_cast<const long long*>(p.ids)[slot]
                     : p.ids_kind == kWords ? static_cast<const int*>(p.ids)[slot] >> 16
                                            : static_cast<const int*>(p.ids)[slot];
  if (p.expert_map) expert = expert >= 0 && expert < p.num_mapped ? p.expert_map[expert] : -1;
  return expert >= 0 && expert < p.num_experts ? static_cast<int>(expert) : -1;
}

template <class S>
__device__ __forceinline__ Tile tile_at(const Product& p, int index) {
  const int whole = quotient(index, p.by_parts);
  Tile tile;
  tile.part = index - whole * p.parts;
  tile.block = quotient(whole, p.by_columns);
  tile.column = whole - tile.block * p.columns;
  tile.expert = S::kMode == kDense ? 0 : p.sorted_slots ? p.block_experts[tile.block] : expert_of(p, tile.block);
  return tile;
}

template <class S>
__device__ __forceinline__ int tiles_of(const Product& p) {
  const int blocks = S::kMode == kDense    ? (p.rows + S::kRows - 1) / S::kRows
                     : p.sorted_slots ? *p.num_padded / S::kRows
                                      : p.rows;
  return blocks * p.columns * p.parts;
}

// A row of a block: where it lies among all rows, and the token or slot that it is; -1 for none.
struct Row {
  int place, owner;
};

template <class S>
__device__ __forceinline__ Row row_of(const Product& p, const Tile& tile, int lane) {
  if (S::kMode != kDense && p.sorted_slots == nullptr) return {tile.block, lane == 0 ? tile.block : -1};
  const int place = tile.block * S::kRows + lane;
  const int owner = S::kMode == kDense ? place : p.sorted_slots[place];
  return {place, owner < p.rows ? owner : -1};
}

// The row of x that a row of the result is made of.
template <class S>
__device__ __forceinline__ int source_of(const Product& p, const Row& row) {
  return S::kMode == kGateUp && p.sorted_slots == nullptr ? quotient(row.place, p.by_top_k) : row.place;
}

template <class S>
__device__ __forceinline__ int weight_row(const Product& p, const Tile& tile, int block) {
  if (S::kMode == kGateUp) return block * p.width + tile.column * S::kColumns;
  return (tile.column * S::kBlocks + block) * S::kColumns;
}

// Where a row of blocks of the weight has its scales.
__device__ __forceinline__ long long w_scale_at(const Product& p, const Tile& tile, int row) {
  return (static_cast<long long>(tile.expert) * p.scale_rows + min(row, p.scale_rows - 1)) * p.w_scale_stride;
}

// The ring in shared memory, in bytes of the shared window; ``scales_here`` is the address of its scales.
struct Ring {
  uint32_t x, w, turn, scales, full, empty;
  const float* scales_here;
};

template <class S>
__device__ __forceinline__ Ring ring_at(uint8_t* bytes) {
  Ring ring;
  const uint32_t given = hopper::shared_address(bytes);
  ring.x = (given + 1023) & ~1023u;
  ring.w = ring.x + S::kStages * S::kXBytes;
  ring.turn = ring.w + S::kStages * S::kWBytes;
  ring.scales = ring.turn + S::kTurnBytes;
  ring.full = ring.scales + S::kStages * S::kScales * 4;
  ring.empty = ring.full + 8 * S::kStages;
  ring.scales_here = reinterpret_cast<const float*>(bytes + (ring.scales - given));
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < S::kStages; stage++) {
      // Threads that fetch scales arrive when these have, and one more for the copy engine's bytes.
      hopper::barrier_init(ring.full + 8 * stage, S::kArrivals);
      hopper::barrier_init(ring.empty + 8 * stage, 4 * S::kWarpgroups * S::kSharing);
    }
    hopper::barriers_made();
  }
  __syncthreads();
  return ring;
}

// Fetches a step of a tile's columns of the weight into a stage.
template <class S>
__device__ __forceinline__ void fetch_weight_of(const CUtensorMap* map, const Product& p, const Ring& ring,
                                                const Tile& tile, int step, int stage) {
#pragma unroll
  for (int block = 0; block < S::kBlocks; block++)
    hopper::copy_tile(ring.w + stage * S::kWBytes + block * S::kBlockBytes, map, step * kStep,
                      tile.expert * p.weight_rows + weight_row<S>(p, tile, block), ring.full + 8 * stage);
}

template <class S>
__device__ __forceinline__ void fetch(const CUtensorMap* x_map, const CUtensorMap* w_map, const Product& p,
                                      const Ring& ring) {
  const int thread = threadIdx.x - 128 * S::kWarpgroups, steps = p.steps;
  const auto fetch_weight = [&](const Tile& tile, int step, int stage) {
    fetch_weight_of<S>(w_map, p, ring, tile, tile.part * steps + step, stage);
  };

  int ahead = 0;
  if (p.prefetch && blockIdx.x < tiles_of<S>(p)) {
    // The weight's first tiles are on their way before x is waited for.
    const Tile tile = tile_at<S>(p, blockIdx.x);
    if (tile.expert >= 0) ahead = min(S::kStages, steps);
    if (thread == 0)
#pragma unroll 1
      for (int step = 0; step < ahead; step++) fetch_weight(tile, step, step);
  }
  hopper::wait_for_predecessor();
  hopper::let_next_start();
  if (S::kForm == kAhead && thread != 0) return;

  const int tiles = tiles_of<S>(p);
  int stage = 0, count = 0;
  uint32_t parity = 1;
  for (int index = blockIdx.x; index < tiles; index += gridDim.x) {
    const Tile tile = tile_at<S>(p, index);
    if (tile.expert < 0) continue;
    int boxes = 0;
#pragma unroll
    for (int box = 0; box < S::kRows / S::kBox; box++) boxes += row_of<S>(p, tile, box * S::kBox).owner >= 0;
    const int first = source_of<S>(p, row_of<S>(p, tile, 0));
    const Row own = row_of<S>(p, tile, thread % S::kRows);
    const bool there = own.owner >= 0;
    const float* x_scale = p.x_scale + static_cast<long long>(there ? source_of<S>(p, own) : 0) * p.x_scale_stride;
    const float* w_scale = p.w_scale;
    if (thread < S::kBlocks) w_scale += w_scale_at(p, tile, weight_row<S>(p, tile, thread) / kStep);
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
      hopper::wait(ring.empty + 8 * stage, parity);
      const int group = tile.part * steps + step;
      if (thread == 0) {
        hopper::arrive_and_expect(ring.full + 8 * stage, S::kWBytes + boxes * S::kBox * kStep);
        if (count >= ahead) fetch_weight(tile, step, stage);
#pragma unroll 1
        for (int box = 0; box < boxes; box++)
          hopper::copy_tile(ring.x + stage * S::kXBytes + box * S::kBox * kStep, x_map, group * kStep,
                            first + box * S::kBox, ring.full + 8 * stage);
      }
      if constexpr (S::kForm != kAhead) {
        const uint32_t scale = ring.scales + stage * S::kScales * 4;
        if (thread < S::kRows) hopper::copy4(scale + 4 * thread, x_scale + group, there);
        if (thread < S::kBlocks) hopper::copy4(scale + 4 * (S::kRows + thread), w_scale + group, true);
        hopper::arrive_after_copies(ring.full + 8 * stage);
      }
      count++;
      if (++stage == S::kStages) stage = 0, parity ^= 1;
    }
  }
}

// gate * sigmoid(gate) * up. The hardware's 2^x is off by 2 ulp; the product before it is made in two words. Below -88
// the sigmoid is 0 here, as the power must stay finite: infinity less a part of itself is no number.
__device__ __forceinline__ float gated(float gate, float up) {
  constexpr float kLog2E = 1.44269502f, kRest = 1.92596299e-8f, kLn2 = 0.693147181f;
  const float x = fminf(fmaxf(gate, -88.0f), 104.0f), whole = x * -kLog2E;
  const float rest = fmaf(x, -kLog2E, -whole) - x * kRest;
  float power, inverse;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(whole));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + fmaf(power, rest * kLn2, power)));
  return gate * inverse * up;
}

// The scale of a group whose largest magnitude, as bits, is given. As integers magnitudes have the order of floats, and
// NaN is the largest.
__device__ __forceinline__ float group_scale(unsigned largest) {
  const float magnitude = __uint_as_float(largest);
  return __fdiv_rn(magnitude < 1e-10f ? 1e-10f : magnitude, 448.0f);
}

__device__ __forceinline__ unsigned magnitude_bits(float x) { return __float_as_uint(x) & 0x7fffffffu; }

// The routing weight of a slot.
template <class S>
__device__ __forceinline__ float factor_of(const Product& p, int owner) {
  if (S::kMode != kDown || owner < 0) return 1.0f;
  return p.weights ? p.weights[owner] : __int_as_float(static_cast<const int*>(p.ids)[owner] << 16);
}

}  // namespace
