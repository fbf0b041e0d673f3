// What is stored of a tile whose columns lie along a register file: codes of act, or sums.
#pragma once

#include "scaled_product.cuh"

namespace {

// The largest magnitude of a row of act, whose lanes q = 0..3 hold two of every eight columns.
template <int kCount>
__device__ __forceinline__ unsigned row_largest(const float (&act)[kCount], int half) {
  unsigned largest = 0;
#pragma unroll
  for (int j = 0; j < kCount / 4; j++)
#pragma unroll
    for (int k = 0; k < 2; k++) largest = max(largest, magnitude_bits(act[4 * j + 2 * half + k]));
  largest = max(largest, __shfl_xor_sync(~0u, largest, 1));
  return max(largest, __shfl_xor_sync(~0u, largest, 2));
}

// Codes of such a row, and the scale of the group that its columns are of; a row -1 is not stored.
template <int kCount>
__device__ __forceinline__ void store_codes(const Product& p, const float (&act)[kCount], int half, unsigned largest,
                                            int at, int column) {
  const int q = threadIdx.x & 3;
  const float scale = group_scale(largest), inverse = __frcp_rn(scale);
  if (q == 0 && at >= 0 && column % kStep == 0)
    p.out_scale[static_cast<long long>(at) * (p.width / kStep) + column / kStep] = scale;
  uint8_t* row = static_cast<uint8_t*>(p.out) + static_cast<long long>(at) * p.width + column;
#pragma unroll
  for (int four = 0; four < kCount / 16; four++) {
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

// The same of 16 bits: a warp turns 64 columns at a time in shared memory, and stores 128 bytes of a row at once. Rows r
// and r + 8 of its lanes 4r and on go to ``at``.
template <int kCount>
__device__ __forceinline__ void store_turned_sums(const Product& p, const float (&y)[kCount], const int (&at)[2],
                                                  int column, uint32_t space) {
  const int lane = threadIdx.x & 31, row = lane & 15;
  space += threadIdx.x / 32 * 2048;
#pragma unroll
  for (int first = 0; first < kCount; first += 32) {
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      const float* a = &y[first + 4 * j];
      const uint32_t tiles[4] = {packed16(a[0], a[1], p.out_kind), packed16(a[2], a[3], p.out_kind),
                                 packed16(a[4], a[5], p.out_kind), packed16(a[6], a[7], p.out_kind)};
      // Runs of 16 bytes lie where no bank has two of them.
      hopper::write_tiles(space + row * 128 + (((j + lane / 16) ^ (row & 7)) << 4), tiles);
    }
    __syncwarp();
#pragma unroll
    for (int four = 0; four < 4; four++) {
      const int from = 4 * four + lane / 8, run = lane & 7, to_column = column + 2 * first + 8 * run;
      const uint4 eight = hopper::read_16_bytes(space + from * 128 + ((run ^ (from & 7)) << 4));
      const int to = __shfl_sync(~0u, at[four / 2], (from & 7) * 4);
      uint16_t* out = static_cast<uint16_t*>(p.out) + static_cast<long long>(to) * p.width + to_column;
      if (to >= 0 && to_column < p.width) *reinterpret_cast<uint4*>(out) = eight;
    }
    __syncwarp();
  }
}

}  // namespace
