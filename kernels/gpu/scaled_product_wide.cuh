// Many rows of x: they are the tensor core's rows, 64 a warpgroup, and columns of the result lie along a register file.
#pragma once

#include "scaled_product_store.cuh"

namespace {

template <class S>
__device__ __forceinline__ void multiply_wide(const Product& p, const Ring& ring) {
  constexpr int kCount = S::kColumns / 2;
  const int lane = threadIdx.x & 31, group_row = threadIdx.x / 128 * 64;
  const int own_row = group_row + (threadIdx.x % 128) / 32 * 16 + lane / 4, steps = p.steps;
  hopper::wait_for_predecessor();

  const int tiles = tiles_of<S>(p);
  int stage = 0;
  uint32_t parity = 0;
  for (int index = blockIdx.x; index < tiles; index += gridDim.x) {
    const Tile tile = tile_at<S>(p, index);
    if (tile.expert < 0) continue;
    // Rows of a block come before its padding, so a warpgroup whose first row is padding has nothing to do.
    const bool busy = row_of<S>(p, tile, group_row).owner >= 0;
    float sums[S::kBlocks][kCount];
#pragma unroll
    for (int block = 0; block < S::kBlocks; block++)
#pragma unroll
      for (int i = 0; i < kCount; i++) sums[block][i] = 0.0f;

#pragma unroll 1
    for (int step = 0; step < steps; step++) {
      hopper::wait(ring.full + 8 * stage, parity);
      if (busy) {
        const float* scale = ring.scales_here + stage * S::kScales;
        const float upper = scale[own_row], lower = scale[own_row + 8];
        const uint64_t a = hopper::matrix_at(ring.x + stage * S::kXBytes + group_row * kStep);
#pragma unroll
        for (int block = 0; block < S::kBlocks; block++) {
          const float w_scale = scale[S::kRows + block];
          const uint64_t b = hopper::matrix_at(ring.w + stage * S::kWBytes + block * S::kBlockBytes);
          float product[kCount];
          hopper::keep_in_place(product);
          hopper::products_begin();
#pragma unroll
          // 32 channels further are 32 bytes further.
          for (int k = 0; k < kStep / 32; k++) hopper::product(product, a + 2 * k, b + 2 * k, k > 0);
          hopper::products_end();
          hopper::keep_in_place(product);
          const float by[2] = {upper * w_scale, lower * w_scale};
#pragma unroll
          for (int i = 0; i < kCount; i++) sums[block][i] += product[i] * by[i >> 1 & 1];
        }
      }
      __syncwarp();
      if (lane == 0) hopper::arrive(ring.empty + 8 * stage);
      if (++stage == S::kStages) stage = 0, parity ^= 1;
    }
    if (!busy) continue;

    if constexpr (S::kMode == kGateUp) {
#pragma unroll
      for (int i = 0; i < kCount; i++) sums[0][i] = gated(sums[0][i], sums[1][i]);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const Row row = row_of<S>(p, tile, own_row + 8 * half);
      if constexpr (S::kMode == kGateUp) {
        const int at = row.owner < 0 ? -1 : row.place;
        store_codes(p, sums[0], half, row_largest(sums[0], half), at, tile.column * S::kColumns);
      } else {
        const long long at = row.owner < 0 ? -1 : static_cast<long long>(tile.part) * p.rows + row.owner;
#pragma unroll
        for (int block = 0; block < S::kBlocks; block++)
          store_sums(p, sums[block], half, at, (tile.column * S::kBlocks + block) * S::kColumns, factor_of<S>(p, row.owner));
      }
    }
  }
}

}  // namespace
