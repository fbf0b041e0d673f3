// Many rows of x: they are the tensor core's rows, 64 a warpgroup, and columns of the result lie along a register file.
#pragma once

#include "scaled_product.cuh"

namespace {

// Codes of a row of act, whose lanes q = 0..3 hold two of every eight columns, and their scale; a row -1 is not stored.
__device__ __forceinline__ void store_codes(const Product& p, float (&act)[64], int half, int at, int column) {
  const int q = threadIdx.x & 3;
  unsigned largest = 0;
#pragma unroll
  for (int j = 0; j < 16; j++)
#pragma unroll
    for (int k = 0; k < 2; k++) largest = max(largest, magnitude_bits(act[4 * j + 2 * half + k]));
  largest = max(largest, __shfl_xor_sync(~0u, largest, 1));
  largest = max(largest, __shfl_xor_sync(~0u, largest, 2));
  const float scale = group_scale(largest), inverse = __frcp_rn(scale);
  if (q == 0 && at >= 0) p.out_scale[static_cast<long long>(at) * (p.width / kStep) + column / kStep] = scale;
  uint8_t* row = static_cast<uint8_t*>(p.out) + static_cast<long long>(at) * p.width + column;
#pragma unroll
  for (int four = 0; four < 4; four++) {
    // A transposition of pairs of codes over the four lanes: each lane then has 8 codes in a row.
    uint32_t pair[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int i = 4 * (4 * four + j) + 2 * half;
      pair[j] = __nv_cvt_float2_to_fp8x2(make_float2(act[i] * inverse, act[i + 1] * inverse), __NV_SATFINITE, __NV_E4M3);
    }
    const uint32_t first = pair[0] | pair[1] << 16, second = pair[2] | pair[3] << 16;
    const uint32_t far = __shfl_xor_sync(~0u, q & 2 ? first : second, 2), near = q & 2 ? second : first;
    const uint32_t low = q & 2 ? far : near, high = q & 2 ? near : far;
    const uint32_t even = __byte_perm(low, high, 0x5410), odd = __byte_perm(low, high, 0x7632);
    const uint32_t other = __shfl_xor_sync(~0u, q & 1 ? even : odd, 1), mine = q & 1 ? odd : even;
    const uint32_t left = q & 1 ? other : mine, right = q & 1 ? mine : other;
    const uint2 codes = make_uint2(__byte_perm(left, right, 0x5410), __byte_perm(left, right, 0x7632));
    if (at >= 0) *reinterpret_cast<uint2*>(row + 8 * (4 * four + q)) = codes;
  }
}

__device__ __forceinline__ uint32_t packed16(float low, float high, int kind) {
  if (kind == kBfloat16) {
    const __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&two);
  }
  const __half2 two = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&two);
}

// A row of sums, or a half of it: 16 columns at once, so that lanes q = 0..3 write 32 bytes in a row.
template <int kCount>
__device__ __forceinline__ void store_sums(const Product& p, float (&y)[kCount], int half, long long row, int column,
                                           float factor) {
  const int q = threadIdx.x & 3;
#pragma unroll
  for (int j = 0; j < kCount / 4; j += 2) {
    const bool inside = row >= 0 && column + 8 * j < p.width;
    const float* a = &y[4 * j + 2 * half];
    const long long place = row * p.width + column + 8 * j;
    if (p.out_kind == kFloat32) {
      float* to = static_cast<float*>(p.out) + place + 2 * q;
      if (inside) *reinterpret_cast<float2*>(to) = make_float2(a[0] * factor, a[1] * factor);
      if (inside) *reinterpret_cast<float2*>(to + 8) = make_float2(a[4] * factor, a[5] * factor);
    } else {
      const uint32_t first = packed16(a[0] * factor, a[1] * factor, p.out_kind);
      const uint32_t second = packed16(a[4] * factor, a[5] * factor, p.out_kind);
      const uint32_t other = __shfl_xor_sync(~0u, q & 1 ? first : second, 1);
      const uint2 four = q & 1 ? make_uint2(other, second) : make_uint2(first, other);
      uint16_t* to = static_cast<uint16_t*>(p.out) + place + (q & 1 ? 8 + 2 * (q - 1) : 2 * q);
      if (inside) *reinterpret_cast<uint2*>(to) = four;
    }
  }
}

template <class S>
__device__ __forceinline__ void multiply_wide(const Product& p, const Ring& ring) {
  constexpr int kCount = S::kColumns / 2;
  const int lane = threadIdx.x & 31, group_row = threadIdx.x / 128 * 64;
  const int own_row = group_row + (threadIdx.x % 128) / 32 * 16 + lane / 4, steps = p.groups / p.parts;
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
        store_codes(p, sums[0], half, row.owner < 0 ? -1 : row.place, tile.column * S::kColumns);
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
