// Tiles whose sums leave room for two products: a warpgroup issues the next before it adds up the last. x's rows are the
// tensor core's, 64 a warpgroup, and scales come from memory a step ahead, so that one thread fetches all codes.
#pragma once

#include "scaled_product_store.cuh"

namespace {

// Scales of a step: of a thread's two rows, and of its columns, on both sides of a border.
struct Scales {
  float row[2], w[2];
};

template <class S>
struct Ahead {
  static constexpr int kCount = S::kColumns / 2;
  // Warpgroups lie along rows, then along blocks of columns.
  static constexpr int kColumnGroups = S::kWarpgroups * 64 / S::kRows;
  static_assert(S::kBlocks == kColumnGroups, "a warpgroup has one block of columns");
  // Columns that are alike in scale, and whether a block of them may have two.
  static constexpr int kChunk = S::kColumns % 64 == 0 ? 64 : 32, kPerChunk = kChunk / 2;
  static constexpr bool kCrosses = kStep % S::kColumns != 0;

  const Product& p;
  const Ring& ring;
  const int group_row, own_row, block;
  Tile tile;
  // Where the scales are; so many that 32 bits do not count them are of 550 GB of codes.
  uint32_t row_place[2], w_place[2];
  int border, step, stage = 0, last_stage = 0;
  uint32_t parity = 0;
  float sums[kCount], product[2][kCount];
  Scales scales, next;

  __device__ __forceinline__ Ahead(const Product& p, const Ring& ring)
      : p(p), ring(ring), group_row(threadIdx.x / 128 / kColumnGroups * 64),
        own_row(group_row + (threadIdx.x % 128) / 32 * 16 + (threadIdx.x & 31) / 4),
        block(threadIdx.x / 128 % kColumnGroups) {}

  __device__ __forceinline__ Scales load(int at) const {
    Scales s;
#pragma unroll
    for (int half = 0; half < 2; half++) s.row[half] = p.x_scale[row_place[half] + at];
    s.w[0] = p.w_scale[w_place[0] + at];
    s.w[1] = kCrosses ? p.w_scale[w_place[1] + at] : s.w[0];
    return s;
  }

  __device__ __forceinline__ void begin(int steps) {
    const int column = weight_row<S>(p, tile, block);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const Row own = row_of<S>(p, tile, own_row + 8 * half);
      const uint32_t row = own.owner >= 0 ? source_of<S>(p, own) : 0;
      row_place[half] = row * p.x_scale_stride + tile.part * steps;
      w_place[half] = static_cast<uint32_t>(w_scale_at(p, tile, column / kStep + half)) + tile.part * steps;
    }
    border = (kStep - column % kStep) / kChunk;
    step = 0;
    next = load(0);
    // The first addition is of nothing.
    scales = {};
#pragma unroll
    for (int i = 0; i < kCount; i++) sums[i] = product[1][i] = 0.0f;
  }

  __device__ __forceinline__ void add(const float (&product)[kCount], const Scales& scales) {
#pragma unroll
    for (int chunk = 0; chunk < S::kColumns / kChunk; chunk++) {
      const float w = kCrosses && chunk >= border ? scales.w[1] : scales.w[0];
      const float by[2] = {scales.row[0] * w, scales.row[1] * w};
#pragma unroll
      for (int i = chunk * kPerChunk; i < (chunk + 1) * kPerChunk; i++) sums[i] += product[i] * by[i >> 1 & 1];
    }
  }

  __device__ __forceinline__ void release(int stage) {
    __syncwarp();
    if ((threadIdx.x & 31) == 0) hopper::arrive(ring.empty + 8 * stage);
  }

  __device__ __forceinline__ void next_stage() {
    last_stage = stage;
    if (++stage == S::kStages) stage = 0, parity ^= 1;
  }

  // Issues a step's products into one array, and adds up those of the step before, which are in the other.
  template <int kArray>
  __device__ __forceinline__ void multiply_step(int steps) {
    const Scales before = scales;
    scales = next;
    next = load(min(step + 1, steps - 1));
    hopper::wait(ring.full + 8 * stage, parity);
    const uint64_t a = hopper::matrix_at(ring.x + stage * S::kXBytes + group_row * kStep);
    const uint64_t b = hopper::matrix_at(ring.w + stage * S::kWBytes + block * S::kBlockBytes);
    hopper::keep_in_place(product[kArray]);
    hopper::products_begin();
#pragma unroll
    // 32 channels further are 32 bytes further.
    for (int k = 0; k < kStep / 32; k++) hopper::product(product[kArray], a + 2 * k, b + 2 * k, k > 0);
    hopper::products_end<1>();
    hopper::keep_in_place(product[1 - kArray]);
    if (step > 0) release(last_stage);
    add(product[1 - kArray], before);
    next_stage(), step++;
  }

  template <int kArray>
  __device__ __forceinline__ void add_last() {
    hopper::products_wait();
    hopper::keep_in_place(product[kArray]);
    release(last_stage);
    add(product[kArray], scales);
  }

  __device__ __forceinline__ void multiply(int steps) {
    begin(steps);
#pragma unroll 1
    while (step + 1 < steps) {
      multiply_step<0>(steps);
      multiply_step<1>(steps);
    }
    if (steps & 1) {
      multiply_step<0>(steps);
      add_last<0>();
    } else {
      add_last<1>();
    }
  }

  // The same for a warpgroup that has no row.
  __device__ __forceinline__ void pass(int steps) {
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
      hopper::wait(ring.full + 8 * stage, parity);
      release(stage);
      next_stage();
    }
  }

  __device__ __forceinline__ void store() {
    const int column = weight_row<S>(p, tile, block);
    int at[2];
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const Row row = row_of<S>(p, tile, own_row + 8 * half);
      at[half] = row.owner < 0 ? -1 : tile.part * p.rows + row.owner;
      factor[half] = factor_of<S>(p, row.owner);
    }
    if constexpr (S::kTurns) {
      if (p.out_kind != kFloat32) {
        store_turned_sums(p, sums, at, column, ring.turn);
        return;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) store_sums(p, sums, half, at[half], column, factor[half]);
  }

  // Two programs have the parts of a tile: each makes half of its columns, of both in their order.
  __device__ __forceinline__ void store_joined() {
    constexpr int kThreads = 128 * S::kWarpgroups, kHalf = kCount / 2;
    static_assert(kHalf % 8 == 0, "halves are whole runs of 16 columns");
    // A program has one tile here, so the ring is free once all have read their last stage.
    asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
#pragma unroll
    for (int i = 0; i < kCount; i++) hopper::write(ring.x + 4 * (i * kThreads + threadIdx.x), sums[i]);
    hopper::cluster_arrive();
    hopper::cluster_wait();
    float total[kHalf];
#pragma unroll
    for (int i = 0; i < kHalf; i++) {
      const uint32_t place = ring.x + 4 * ((tile.part * kHalf + i) * kThreads + threadIdx.x);
      total[i] = hopper::read_from(0, place) + hopper::read_from(1, place);
    }
    hopper::cluster_arrive();
    const int column = weight_row<S>(p, tile, block) + tile.part * kHalf * 2;
#pragma unroll
    for (int half = 0; half < 2; half++)
      store_sums(p, total, half, row_of<S>(p, tile, own_row + 8 * half).owner, column, 1.0f);
    // Nobody leaves while the other still reads.
    hopper::cluster_wait();
  }
};

template <class S>
__device__ __forceinline__ void multiply_ahead(const Product& p, const Ring& ring) {
  Ahead<S> run(p, ring);
  const int steps = p.steps;
  hopper::wait_for_predecessor();

  const int tiles = tiles_of<S>(p);
  for (int index = blockIdx.x; index < tiles; index += gridDim.x) {
    run.tile = tile_at<S>(p, index);
    if (run.tile.expert < 0) continue;
    const bool busy = row_of<S>(p, run.tile, run.group_row).owner >= 0;
    if (busy) {
      run.multiply(steps);
    } else {
      run.pass(steps);
    }
    if (kHalves<S> && p.joined) {
      run.store_joined();
    } else if (busy) {
      run.store();
    }
  }
}

}  // namespace
