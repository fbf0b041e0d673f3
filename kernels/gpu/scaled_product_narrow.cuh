// Few rows of x: the weight's rows are the tensor core's, 64 a warpgroup and block, so that no row of it stays empty.
#pragma once

#include "cluster.cuh"
#include "scaled_product.cuh"

namespace {

// Largest magnitudes of a row's act, a warp each.
struct Exchange {
  unsigned largest[8][64];
};

// Row 0 of the parts but the first, of as many tiles of a program as fit, and who has written it.
constexpr int kPartSums = 3072, kMostTiles = 12;
struct Parts {
  float sums[kPartSums];
  uint64_t written[kMostTiles];
};

// Every warp that multiplies arrives for its part of a tile; all threads of the cluster begin so.
template <class S>
__device__ __forceinline__ void begin_joined(const Product& p, Parts& parts) {
  if (threadIdx.x == 0) {
    for (uint64_t& written : parts.written)
      hopper::barrier_init(hopper::shared_address(&written), (p.parts - 1) * 4 * S::kWarpgroups);
    hopper::barriers_made();
  }
  __syncthreads();
  hopper::cluster_arrive();
}

// Values of a thread: rows 8j + 2q and the next of x, for the weight's rows r and r + 8 of its warp.
template <class S>
__device__ __forceinline__ void store_narrow_codes(const Product& p, const Tile& tile, float (&act)[S::kRows / 2],
                                                   int weight_lane, Exchange& exchange) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, q = lane & 3;
#pragma unroll
  for (int j = 0; j < S::kRows / 8; j++)
#pragma unroll
    for (int k = 0; k < 2; k++) {
      unsigned largest = max(magnitude_bits(act[4 * j + k]), magnitude_bits(act[4 * j + 2 + k]));
#pragma unroll
      for (int apart = 4; apart < 32; apart *= 2) largest = max(largest, __shfl_xor_sync(~0u, largest, apart));
      if (lane < 4) exchange.largest[warp][8 * j + 2 * q + k] = largest;
    }
  // Fetching warps take no part. Nobody writes the next tile's maxima before all have met here again.
  asm volatile("bar.sync 1, %0;" ::"n"(128 * S::kWarpgroups) : "memory");
#pragma unroll
  for (int j = 0; j < S::kRows / 8; j++)
#pragma unroll
    for (int k = 0; k < 2; k++) {
      const Row row = row_of<S>(p, tile, 8 * j + 2 * q + k);
      unsigned largest = 0;
#pragma unroll
      for (int other = 0; other < 4 * S::kWarpgroups; other++)
        largest = max(largest, exchange.largest[other][8 * j + 2 * q + k]);
      if (row.owner < 0) continue;
      const float scale = group_scale(largest), inverse = __frcp_rn(scale);
      const long long place = row.place;
      if (weight_lane == 0) p.out_scale[place * (p.width / kStep) + tile.column] = scale;
      uint8_t* to = static_cast<uint8_t*>(p.out) + place * p.width + tile.column * S::kColumns + weight_lane;
      to[0] = __nv_cvt_float_to_fp8(act[4 * j + k] * inverse, __NV_SATFINITE, __NV_E4M3);
      to[8] = __nv_cvt_float_to_fp8(act[4 * j + 2 + k] * inverse, __NV_SATFINITE, __NV_E4M3);
    }
  asm volatile("bar.sync 1, %0;" ::"n"(128 * S::kWarpgroups) : "memory");
}

__device__ __forceinline__ void store_one(const Product& p, long long at, float value) {
  if (p.out_kind == kFloat32) static_cast<float*>(p.out)[at] = value;
  if (p.out_kind == kBfloat16) static_cast<__nv_bfloat16*>(p.out)[at] = __float2bfloat16_rn(value);
  if (p.out_kind == kFloat16) static_cast<__half*>(p.out)[at] = __float2half_rn(value);
}

// Adds up row 0 of a program's tile in the first program of the cluster, in the order of the parts; whether this is it.
template <class S>
__device__ __forceinline__ bool added_up(const Product& p, const Tile& tile, float (&sums)[S::kBlocks][S::kRows / 2],
                                         int weight_lane, int turn, Parts& parts) {
  const bool has_row = (threadIdx.x & 3) == 0;
  const auto each = [&](int part, auto use) {
    if (!has_row) return;
    float* place = parts.sums + (turn * (p.parts - 1) + part - 1) * S::kBlocks * S::kColumns;
#pragma unroll
    for (int block = 0; block < S::kBlocks; block++)
#pragma unroll
      for (int k = 0; k < 2; k++) use(sums[block][2 * k], place + block * S::kColumns + weight_lane + 8 * k);
  };
  const uint32_t written = hopper::shared_address(&parts.written[turn]);
  if (tile.part > 0) {
    each(tile.part, [](float sum, float* place) {
      hopper::write_there(hopper::in_first_program(hopper::shared_address(place)), sum);
    });
    __syncwarp();
    if (threadIdx.x % 32 == 0) hopper::arrive_there(hopper::in_first_program(written));
    return false;
  }
  cluster::wait(written, 0);
  for (int part = 1; part < p.parts; part++) each(part, [](float& sum, const float* place) { sum += *place; });
  return true;
}

template <class S>
__device__ __forceinline__ void multiply_narrow(const Product& p, const Ring& ring, Exchange& exchange, Parts& parts) {
  constexpr int kCount = S::kRows / 2;
  static_assert(S::kColumns == 64 * S::kWarpgroups, "a warpgroup has 64 rows of each block of the weight");
  const int lane = threadIdx.x & 31, q = lane & 3, group_lane = threadIdx.x / 128 * 64;
  const int weight_lane = group_lane + (threadIdx.x % 128) / 32 * 16 + lane / 4, steps = p.steps;
  hopper::wait_for_predecessor();

  if (kJoins<S> && p.joined) hopper::cluster_wait();
  const int tiles = tiles_of<S>(p);
  int stage = 0, turn = 0;
  uint32_t parity = 0;
  for (int index = blockIdx.x; index < tiles; index += gridDim.x) {
    const Tile tile = tile_at<S>(p, index);
    if (tile.expert < 0) continue;
    float sums[S::kBlocks][kCount];
#pragma unroll
    for (int block = 0; block < S::kBlocks; block++)
#pragma unroll
      for (int i = 0; i < kCount; i++) sums[block][i] = 0.0f;

#pragma unroll 1
    for (int step = 0; step < steps; step++) {
      hopper::wait(ring.full + 8 * stage, parity);
      float product[S::kBlocks][kCount];
      hopper::products_begin();
#pragma unroll
      for (int block = 0; block < S::kBlocks; block++) {
        const uint64_t a =
            hopper::matrix_at(ring.w + stage * S::kWBytes + block * S::kBlockBytes + group_lane * kStep);
        const uint64_t b = hopper::matrix_at(ring.x + stage * S::kXBytes);
#pragma unroll
        for (int k = 0; k < kStep / 32; k++) hopper::product(product[block], a + 2 * k, b + 2 * k, k > 0);
      }
      // Scales come while products are made.
      const float* scale = ring.scales_here + stage * S::kScales;
      float x_scale[S::kRows / 4], w_scale[S::kBlocks];
#pragma unroll
      for (int j = 0; j < S::kRows / 8; j++)
#pragma unroll
        for (int k = 0; k < 2; k++) x_scale[2 * j + k] = scale[8 * j + 2 * q + k];
#pragma unroll
      for (int block = 0; block < S::kBlocks; block++) w_scale[block] = scale[S::kRows + block];
      hopper::products_end();
#pragma unroll
      for (int block = 0; block < S::kBlocks; block++) {
        hopper::keep_in_place(product[block]);
#pragma unroll
        for (int i = 0; i < kCount; i++)
          sums[block][i] += product[block][i] * (x_scale[i / 4 * 2 + (i & 1)] * w_scale[block]);
      }
      __syncwarp();
      if (lane == 0) hopper::arrive(ring.empty + 8 * stage);
      if (++stage == S::kStages) stage = 0, parity ^= 1;
    }

    if constexpr (kJoins<S>)
      if (p.joined && !added_up<S>(p, tile, sums, weight_lane, turn++, parts)) continue;
    if constexpr (S::kMode == kGateUp) {
#pragma unroll
      for (int i = 0; i < kCount; i++) sums[0][i] = gated(sums[0][i], sums[1][i]);
      store_narrow_codes<S>(p, tile, sums[0], weight_lane, exchange);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; i++) {
        const Row row = row_of<S>(p, tile, i / 4 * 8 + 2 * q + (i & 1));
        if (row.owner < 0) continue;
        // Of joined parts only the first comes here.
        const long long at = (static_cast<long long>(tile.part) * p.rows + row.owner) * p.width;
        const float factor = factor_of<S>(p, row.owner);
#pragma unroll
        for (int block = 0; block < S::kBlocks; block++) {
          const int column = (tile.column * S::kBlocks + block) * S::kColumns + weight_lane + (i >> 1 & 1) * 8;
          if (column < p.width) store_one(p, at + column, sums[block][i] * factor);
        }
      }
    }
  }
}

}  // namespace
