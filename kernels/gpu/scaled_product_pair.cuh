// Many rows of x by programs in pairs: both need the same rows, of which each fetches every other box for both. A
// warpgroup has 64 of them and 128 of the weight's. Products and additions do not overlap, and other instructions seem to
// take their turns, too: hence what a step needs is kept, and counted on, instead of made again.
#pragma once

#include "cluster.cuh"
#include "scaled_product_store.cuh"

namespace {

// Largest magnitudes of rows of act by the other program, which has the other half of a group: this tile's and the next's.
struct Halves {
  unsigned largest[2][192];
  uint64_t written[2][12];
};

template <class S>
__device__ __forceinline__ void begin_pair(Halves& halves) {
  if (S::kMode == kGateUp && threadIdx.x == 0) {
    for (int turn = 0; turn < 2; turn++)
      for (int warp = 0; warp < 4 * S::kWarpgroups; warp++)
        hopper::barrier_init(hopper::shared_address(&halves.written[turn][warp]), 1);
    hopper::barriers_made();
  }
  __syncthreads();
  cluster::arrive();
}

// Nobody leaves while the other may still write here.
__device__ __forceinline__ void end_pair() {
  __syncwarp();
  cluster::arrive();
  cluster::wait_for_all();
}

// A program's half of a tile of its pair.
template <class S>
__device__ __forceinline__ Tile paired_tile(const Product& p, int index) {
  Tile tile = tile_at<S>(p, index);
  tile.column = 2 * tile.column + (blockIdx.x & 1);
  return tile;
}

// One thread fetches; the other fetching warps have nothing to do.
template <class S>
__device__ __forceinline__ void fetch_for_both(const CUtensorMap* x_map, const CUtensorMap* w_map, const Product& p,
                                               const Ring& ring) {
  const int steps = p.steps, own = blockIdx.x & 1;
  const bool fetches = threadIdx.x == 128 * S::kWarpgroups;
  const auto fetch_weight = [&](const Tile& tile, int step, int stage) {
    fetch_weight_of<S>(w_map, p, ring, tile, tile.part * steps + step, stage);
  };

  int ahead = 0;
  if (p.prefetch && blockIdx.x / 2 < tiles_of<S>(p)) {
    const Tile tile = paired_tile<S>(p, blockIdx.x / 2);
    if (tile.expert >= 0) ahead = min(S::kStages, steps);
    if (fetches)
#pragma unroll 1
      for (int step = 0; step < ahead; step++) fetch_weight(tile, step, step);
  }
  hopper::wait_for_predecessor();
  hopper::let_next_start();
  __syncwarp();
  cluster::wait_for_all();
  if (!fetches) return;

  const int tiles = tiles_of<S>(p);
  int stage = 0, count = 0;
  uint32_t parity = 1;
  for (int index = blockIdx.x / 2; index < tiles; index += gridDim.x / 2) {
    const Tile tile = paired_tile<S>(p, index);
    if (tile.expert < 0) continue;
    int boxes = 0;
#pragma unroll
    for (int box = 0; box < S::kRows / S::kBox; box++) boxes += row_of<S>(p, tile, box * S::kBox).owner >= 0;
    const int first = tile.block * S::kRows;
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
      // Empty here and in the other program, whose warps arrive here, too.
      hopper::wait(ring.empty + 8 * stage, parity);
      hopper::arrive_and_expect(ring.full + 8 * stage, S::kWBytes + boxes * S::kBox * kStep);
#pragma unroll 1
      for (int box = own; box < boxes; box += 2)
        hopper::copy_tile_to_both(ring.x + stage * S::kXBytes + box * S::kBox * kStep, x_map,
                                  (tile.part * steps + step) * kStep, first + box * S::kBox, ring.full + 8 * stage);
      if (count++ >= ahead) fetch_weight(tile, step, stage);
      if (++stage == S::kStages) stage = 0, parity ^= 1;
    }
  }
}

template <class S>
struct Paired {
  static constexpr int kCount = 64;
  static_assert(S::kBlocks * S::kColumns == 128 && S::kRows == 64 * S::kWarpgroups, "64 x 128 a warpgroup");

  const Product& p;
  const Ring& ring;
  Halves& halves;
  const int group_row, own_row;
  // Kept: where matrices of the first stage lie, as descriptors say it, and where this thread tells that it is empty.
  uint32_t x_matrix, w_matrix, empty;
  Tile tile;
  uint32_t row_place[2], w_place[S::kBlocks];
  int stage = 0, turn = 0;
  uint32_t parity = 0;
  float sums[kCount], product[kCount], row_scale[2], w_scale[S::kBlocks];

  __device__ __forceinline__ Paired(const Product& p, const Ring& ring, Halves& halves)
      : p(p), ring(ring), halves(halves), group_row(threadIdx.x / 128 * 64),
        own_row(threadIdx.x / 32 * 16 + (threadIdx.x & 31) / 4) {
    x_matrix = kept(static_cast<uint32_t>(hopper::matrix_at(ring.x + group_row * kStep)));
    w_matrix = kept(static_cast<uint32_t>(hopper::matrix_at(ring.w)));
    empty = kept(cluster::in_program(ring.empty, threadIdx.x & 1));
  }

  // The same value, which the compiler does not make again at each use.
  __device__ __forceinline__ static uint32_t kept(uint32_t value) {
    return __shfl_sync(~0u, value, threadIdx.x & 31);
  }

  // A step's scales come while its products are made: the compiler would ask for them only where they are needed.
  __device__ __forceinline__ void load_scales() {
    const auto load = [](const float* from) {
      float value;
      asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(value) : "l"(from) : "memory");
      return value;
    };
#pragma unroll
    for (int half = 0; half < 2; half++) row_scale[half] = load(p.x_scale + row_place[half]++);
#pragma unroll
    for (int block = 0; block < S::kBlocks; block++) w_scale[block] = load(p.w_scale + w_place[block]++);
  }

  __device__ __forceinline__ void begin(int steps) {
    const uint32_t first = tile.part * steps;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const Row own = row_of<S>(p, tile, own_row + 8 * half);
      row_place[half] = kept(first + (own.owner >= 0 ? own.place * p.x_scale_stride : 0));
    }
#pragma unroll
    for (int block = 0; block < S::kBlocks; block++)
      w_place[block] = kept(first + w_scale_at(p, tile, weight_row<S>(p, tile, block) / kStep));
#pragma unroll
    for (int i = 0; i < kCount; i++) sums[i] = 0.0f;
  }

  __device__ __forceinline__ void add() {
    constexpr int kEach = kCount / S::kBlocks;
#pragma unroll
    for (int block = 0; block < S::kBlocks; block++) {
      const float by[2] = {row_scale[0] * w_scale[block], row_scale[1] * w_scale[block]};
#pragma unroll
      for (int half = 0; half < 2; half++)
#pragma unroll
        for (int i = block * kEach; i < (block + 1) * kEach; i++)
          if ((i >> 1 & 1) == half) sums[i] += product[i] * by[half];
    }
  }

  // A warp has read a stage: both programs that fetch into it are told.
  __device__ __forceinline__ void release() {
    __syncwarp();
    if ((threadIdx.x & 31) < 2) hopper::arrive_at(empty + 8 * stage);
    if (++stage == S::kStages) stage = 0, parity ^= 1;
  }

  __device__ __forceinline__ void issue() {
    // Alike in all lanes: the compiler, told so, counts on in the warp's own registers.
    const uint32_t x_at = __reduce_or_sync(~0u, x_matrix + stage * (S::kXBytes >> 4));
    const uint32_t w_at = __reduce_or_sync(~0u, w_matrix + stage * (S::kWBytes >> 4));
    hopper::wait(ring.full + 8 * stage, parity);
    hopper::keep_in_place(product);
    hopper::products_begin();
#pragma unroll
    // 32 channels further are 32 bytes further.
    for (int k = 0; k < kStep / 32; k++)
      hopper::product(product, hopper::matrix_of(x_at + 2 * k), hopper::matrix_of(w_at + 2 * k), k > 0);
    hopper::products_commit();
  }

  __device__ __forceinline__ void multiply(int steps) {
    begin(steps);
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
      issue();
      load_scales();
      hopper::products_wait();
      hopper::keep_in_place(product);
      release();
      add();
    }
  }

  // The same for a warpgroup that has no row.
  __device__ __forceinline__ void pass(int steps) {
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
      hopper::wait(ring.full + 8 * stage, parity);
      release();
    }
  }

  // What the other program's columns have to say of this warp's rows, for what these have.
  __device__ __forceinline__ void exchange(unsigned (&largest)[2]) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x & 31, buffer = turn & 1;
    const uint32_t written = hopper::shared_address(&halves.written[buffer][warp]);
    const unsigned* place = halves.largest[buffer] + own_row;
    if (lane == 0) hopper::arrive_and_expect(written, 64);
    if (lane % 4 == 0) {
      const int other = blockIdx.x & 1 ^ 1;
      const uint32_t barrier = cluster::in_program(written, other);
#pragma unroll
      for (int half = 0; half < 2; half++)
        cluster::send(cluster::in_program(hopper::shared_address(place + 8 * half), other), largest[half], barrier);
    }
    // A buffer is written again only when the other program has had the next tile's, which is sent after this is read.
    // What came is in shared memory alone: acquired of the cluster, it would cost all that L1 has.
    hopper::wait(written, turn >> 1 & 1);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      unsigned theirs;
      asm volatile("ld.shared.u32 %0, [%1];" : "=r"(theirs) : "r"(hopper::shared_address(place + 8 * half)) : "memory");
      largest[half] = max(largest[half], theirs);
    }
    __syncwarp();
    turn++;
  }

  __device__ __forceinline__ void store_act() {
    float act[kCount / 2];
#pragma unroll
    for (int i = 0; i < kCount / 2; i++) act[i] = gated(sums[i], sums[kCount / 2 + i]);
    unsigned largest[2] = {row_largest(act, 0), row_largest(act, 1)};
    exchange(largest);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const Row row = row_of<S>(p, tile, own_row + 8 * half);
      store_codes(p, act, half, largest[half], row.owner < 0 ? -1 : row.place, tile.column * S::kColumns);
    }
  }

  __device__ __forceinline__ void store() {
    if constexpr (S::kMode == kGateUp) {
      store_act();
    } else {
      const int column = weight_row<S>(p, tile, 0);
      int at[2];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int owner = row_of<S>(p, tile, own_row + 8 * half).owner;
        at[half] = owner < 0 ? -1 : tile.part * p.rows + owner;
        const float factor = factor_of<S>(p, owner);
#pragma unroll
        for (int i = 2 * half; S::kMode == kDown && i < kCount; i += 4) sums[i] *= factor, sums[i + 1] *= factor;
      }
      if (p.out_kind != kFloat32) {
        store_turned_sums(p, sums, at, column, ring.turn);
        return;
      }
#pragma unroll
      for (int half = 0; half < 2; half++) store_sums(p, sums, half, at[half], column, 1.0f);
    }
  }
};

// The next tile's expert and slots are in L1 when they are asked for: nothing is multiplied until they are known.
template <class S>
__device__ __forceinline__ void expect_tile(const Product& p, int index) {
  const auto expect = [](const int* at) { asm volatile("prefetch.global.L1 [%0];" ::"l"(at) : "memory"); };
  const int block = quotient(index, p.by_columns);
  expect(p.block_experts + block);
  expect(p.sorted_slots + block * S::kRows + threadIdx.x / 2);
}

template <class S>
__device__ __forceinline__ void multiply_paired(const Product& p, const Ring& ring, Halves& halves) {
  Paired<S> run(p, ring, halves);
  hopper::wait_for_predecessor();
  cluster::wait_for_all();

  const int tiles = tiles_of<S>(p), steps = p.steps;
  for (int index = blockIdx.x / 2; index < tiles; index += gridDim.x / 2) {
    run.tile = paired_tile<S>(p, index);
    if (run.tile.expert < 0) continue;
    if (row_of<S>(p, run.tile, run.group_row).owner >= 0) {
      if (S::kMode != kDense && index + gridDim.x / 2 < tiles) expect_tile<S>(p, index + gridDim.x / 2);
      run.multiply(steps);
      run.store();
    } else {
      run.pass(steps);
    }
  }
}

}  // namespace
