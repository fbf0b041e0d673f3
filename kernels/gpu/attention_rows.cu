// Attention of a few rows over a paged cache: one token a sequence, its query heads the columns of a tensor core.
//
// A cluster of programs shares the keys of one key/value head. A warp has a ring of its own in shared memory, of tiles of
// 16 keys, and needs no other warp until its keys end. Programs add up through each other's shared memory: the one that
// stores a slice of the result receives it from all. Slices are as many as a power of two of the programs.
#include <cuda_bf16.h>
#include <math.h>

#include <type_traits>

#include "cluster.cuh"
#include "divisor.cuh"
#include "early_launch.cuh"

namespace {

constexpr int kRows = 8, kChannelBits = 7, kChannels = 1 << kChannelBits, kKeys = 16, kMostPrograms = 16;
constexpr int kSumBits = 10, kSums = 1 << kSumBits;
static_assert(kSums == kRows * kChannels);
constexpr int kTileBytes = kKeys * kChannels * 2;
// Floats from row to row of a warp's sums: its stores then meet every bank once.
constexpr int kApart = kChannels + 4;

struct Attention {
  const __nv_bfloat16 *q, *k, *v;
  const void *table, *lengths, *starts;
  __nv_bfloat16* out;  // [tokens, heads, 128]
  long long q_stride, q_head_stride, k_head_stride, v_head_stride, table_stride;
  unsigned k_page_stride, k_slot_stride, v_page_stride, v_slot_stride;  // in 16 bytes
  float factor;                                                         // of the scores, in base 2
  int tokens, sequences, pages, page, capacity, heads, group, queries, expected;
  int wide_table, wide_lengths, wide_starts;  // int64
  Divisor by_page, by_heads, by_group, by_programs;
};

__device__ __forceinline__ long long index(const void* p, long long at, int wide) {
  return wide ? static_cast<const long long*>(p)[at] : static_cast<const int*>(p)[at];
}

// Copies 16 bytes, or writes as many zeros.
template <bool whole>
__device__ __forceinline__ void copy16(uint32_t to, const void* from, bool there) {
  if constexpr (whole)
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
  else
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0)
                 : "memory");
}

__device__ __forceinline__ void load(uint32_t (&a)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(address) : "memory");
}

__device__ __forceinline__ void load_transposed(uint32_t (&a)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3]) : "r"(address) : "memory");
}

// sums[16, 8] += a[16, 16] * b[8, 16]^T
__device__ __forceinline__ void multiply(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two weights of a key as a row of an 8 x 8 matrix, transposed over the warp.
__device__ __forceinline__ uint32_t transposed_pair(float low, float high) {
  uint32_t word, turned;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(word));
  return turned;
}

__device__ __forceinline__ float power(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 2^(top - peak), 0 for a part that has seen no key.
__device__ __forceinline__ float weight_of(float top, float peak) {
  return top == -INFINITY ? 0.0f : power(top - peak);
}

__device__ __forceinline__ uint2 four(float4 x) {
  uint2 y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y.x) : "f"(x.y), "f"(x.x));
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y.y) : "f"(x.w), "f"(x.z));
  return y;
}

// One value in rows of the result that no key meets: tokens from first to last, the heads of h.
__device__ void fill(const Attention& p, long long first, long long last, int h, float value) {
  const uint2 word = four(make_float4(value, value, value, value));
  const int width = p.group * kChannels / 4;
  for (long long token = max(first, 0ll); token < min(last, static_cast<long long>(p.tokens)); token++)
    for (int at = threadIdx.x; at < width; at += blockDim.x)
      reinterpret_cast<uint2*>(p.out + (token * p.heads * p.group + h * p.group) * kChannels)[at] = word;
}

template <int kWarps, int kStages>
__global__ void __launch_bounds__(kWarps * 32, 8 / kWarps) attention_rows(const __grid_constant__ Attention p) {
  extern __shared__ __align__(128) uint8_t ring[];
  __shared__ float2 warp_stats[kWarps][kRows];
  __shared__ __align__(16) float received[2 * kSums];  // [programs][own]: a slice from each
  __shared__ __align__(8) float2 received_stats[kMostPrograms][kRows];
  __shared__ uint64_t arrived;
  static_assert(kRows * kApart * 4 <= kStages * 2 * kTileBytes, "a warp keeps its sums in its own ring");
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const int programs = cluster::size(), rank = cluster::rank();
  const int cluster_index = cluster::index(), b = quotient(cluster_index, p.by_heads), h = cluster_index - b * p.heads;
  // Programs that store, a power of two, and the sums of each.
  const int storing_bits = 31 - __clz(programs), storing = 1 << storing_bits;
  const int own_bits = kSumBits - storing_bits, own = 1 << own_bits;
  const uint32_t barrier = cluster::shared_address(&arrived);
  if (threadIdx.x == 0)
    cluster::expect(barrier, rank < storing ? programs * (own * 4 + max(own >> kChannelBits, 1) * 8) : 0);
  cluster::arrive();
  asm volatile("griddepcontrol.wait;" ::: "memory");

  // A pair of tiles: lanes 0 to 15 have the first one's keys, the others the second's.
  const auto tiles_of = [&](int keys) { return quotient((keys + kKeys - 1) / kKeys + programs - 1, p.by_programs); };
  const auto key_of = [&](int tiles, int turn) {
    return (rank * tiles + (turn + lane / 16) * kWarps + warp) * kKeys + lane % 16;
  };
  const auto entry = [&](int key) { return index(p.table, b * p.table_stride + quotient(key, p.by_page), p.wide_table); };
  // Lengths are not here yet: the table is read where the longest sequence would have it.
  const int guessed = min(p.expected, p.capacity), guess_tiles = tiles_of(guessed);
  long long guess[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int key = key_of(guess_tiles, 2 * i);
    guess[i] = key < guessed && (2 * i + lane / 16) * kWarps + warp < guess_tiles ? entry(key) : 0;
  }
  const long long start = index(p.starts, b, p.wide_starts), end = index(p.starts, b + 1, p.wide_starts);
  const long long claimed = index(p.lengths, b, p.wide_lengths);
  long long before = 0, behind = p.tokens;
  if (b == 0) before = start, behind = index(p.starts, p.sequences, p.wide_starts);

  const bool wrong = claimed < 0 || claimed > p.capacity || start < 0 || end > p.tokens;
  const int length = static_cast<int>(min(max(claimed, 0ll), static_cast<long long>(p.capacity)));
  const int queries = static_cast<int>(min(max(end - start, 0ll), static_cast<long long>(p.queries)));
  // The causal edge is aligned to the end: the last query sees every key.
  const long long all = min(max(end - start, 0ll), static_cast<long long>(p.tokens));
  const int offset = length - static_cast<int>(all) + 1, last = max(offset + queries - 1, 0);
  const int tiles = tiles_of(last), final_tile = min((rank + 1) * tiles, (last + kKeys - 1) / kKeys);
  // The warp's tiles: every kWarps-th of the program's.
  const int count = max(0, (final_tile - rank * tiles - warp + kWarps - 1) / kWarps);

  bool broken = false;
  const auto page_of = [&](long long entry) {
    const bool outside = entry < 0 || entry >= p.pages;
    broken |= outside;
    return outside ? 0 : static_cast<int>(entry);
  };
  const auto fetch_pages = [&](int turn) {
    const int key = key_of(tiles, turn);
    return turn + lane / 16 < count && key < last ? page_of(entry(key)) : 0;
  };
  // Pages of the next pair of tiles and of the one after it.
  const bool right = guess_tiles == tiles && last <= guessed;
  int pages[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    if (right)
      pages[i] = 2 * i + lane / 16 < count && key_of(tiles, 2 * i) < last ? page_of(guess[i]) : 0;
    else
      pages[i] = fetch_pages(2 * i);
  }

  uint8_t* const mine = ring + warp * kStages * 2 * kTileBytes;
  const uint32_t base = cluster::shared_address(mine);
  // Half a warp copies a row, a thread 16 bytes of it, as do all that read it: chunks are exchanged row by row.
  const int half = lane / 16, chunk = lane % 16;
  const uint4* const k_head = reinterpret_cast<const uint4*>(p.k + h * p.k_head_stride) + chunk;
  const uint4* const v_head = reinterpret_cast<const uint4*>(p.v + h * p.v_head_stride) + chunk;
  const uint32_t base_half = base + half * 256, exchanged = (chunk ^ half) << 4;
  unsigned k_place = 0, v_place = 0;
  const auto copy = [&](auto whole, uint32_t at, int turn, int there) {
#pragma unroll
    for (int i = 0; i < kKeys / 2; i++) {
      const unsigned place = __shfl_sync(~0u, k_place, turn % 2 * 16 + 2 * i + half);
      copy16<whole>(at + i * 512 + (exchanged ^ (2 * i & 7) << 4), k_head + place, 2 * i + half < there);
    }
#pragma unroll
    for (int i = 0; i < kKeys / 2; i++) {
      const unsigned place = __shfl_sync(~0u, v_place, turn % 2 * 16 + 2 * i + half);
      copy16<whole>(at + kTileBytes + i * 512 + (exchanged ^ (2 * i & 7) << 4), v_head + place, 2 * i + half < there);
    }
  };
  // Issues the copies of a tile, in order: a group even where there is none.
  const auto fetch = [&](int turn, int stage) {
    if (turn < count) {
      if (turn % 2 == 0) {
        const int key = key_of(tiles, turn), slot = key - quotient(key, p.by_page) * p.page;
        k_place = pages[0] * p.k_page_stride + slot * p.k_slot_stride;
        v_place = pages[0] * p.v_page_stride + slot * p.v_slot_stride;
        pages[0] = pages[1], pages[1] = fetch_pages(turn + 4);
      }
      const int there = last - (rank * tiles + turn * kWarps + warp) * kKeys;
      const uint32_t at = base_half + stage * 2 * kTileBytes;
      if (there >= kKeys)
        copy(std::true_type{}, at, turn, there);
      else
        copy(std::false_type{}, at, turn, there);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
#pragma unroll
  for (int stage = 0; stage < kStages; stage++) fetch(stage, stage);

  // Rows of q: a query's heads, then the next query's.
  uint32_t q[kChannels / 16][2] = {};
  const int rows = queries * p.group;
  const long long token = start + quotient(group, p.by_group);
  if (group < rows && token >= 0 && token < p.tokens) {
    const auto* at = p.q + token * p.q_stride + (h * p.group + group - quotient(group, p.by_group) * p.group) * p.q_head_stride + quad * 2;
#pragma unroll
    for (int step = 0; step < kChannels / 16; step++)
#pragma unroll
      for (int half = 0; half < 2; half++)
        q[step][half] = *reinterpret_cast<const uint32_t*>(at + step * 16 + half * 8);
  }
  // Keys that the thread's two rows see.
  int limits[2];
#pragma unroll
  for (int i = 0; i < 2; i++) limits[i] = offset + quotient(quad * 2 + i, p.by_group);

  float sums[kChannels / 16][4] = {}, top[2] = {-INFINITY, -INFINITY}, total[2] = {};
  for (int turn = 0, stage = 0; turn < count; turn++) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 1) : "memory");
    __syncwarp();
    const uint32_t at = base + stage * 2 * kTileBytes;
    const int first = (rank * tiles + turn * kWarps + warp) * kKeys;
    float even[4] = {}, odd[4] = {};
#pragma unroll
    for (int step = 0; step < kChannels / 16; step++) {
      const int row = lane % 8 + lane / 8 % 2 * 8, chunk = step * 2 + lane / 16;
      uint32_t a[4];
      load(a, at + row * 256 + ((chunk ^ (row & 7)) << 4));
      multiply(step % 2 ? odd : even, a, q[step][0], q[step][1]);
    }
    float x[4], decay[2];
#pragma unroll
    for (int i = 0; i < 4; i++)
      x[i] = first + group + i / 2 * 8 < limits[i % 2] ? (even[i] + odd[i]) * p.factor : -INFINITY;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float peak = fmaxf(x[i], x[i + 2]);
#pragma unroll
      for (int apart = 4; apart < 32; apart *= 2) peak = fmaxf(peak, __shfl_xor_sync(~0u, peak, apart));
      peak = fmaxf(peak, top[i]);
      const float shift = peak == -INFINITY ? 0.0f : peak;
      decay[i] = power(top[i] - shift), top[i] = peak;
      x[i] = power(x[i] - shift), x[i + 2] = power(x[i + 2] - shift);
      total[i] = total[i] * decay[i] + (x[i] + x[i + 2]);
    }
    const uint32_t b0 = transposed_pair(x[0], x[1]), b1 = transposed_pair(x[2], x[3]);
#pragma unroll
    for (int tile = 0; tile < kChannels / 16; tile++) {
      const int row = lane % 8 + lane / 16 * 8, chunk = tile * 2 + lane / 8 % 2;
      uint32_t a[4];
      load_transposed(a, at + kTileBytes + row * 256 + ((chunk ^ (row & 7)) << 4));
#pragma unroll
      for (int i = 0; i < 4; i++) sums[tile][i] *= decay[i % 2];
      multiply(sums[tile], a, b0, b1);
    }
    __syncwarp();
    fetch(turn + kStages, stage);
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncwarp();

  float* const kept = reinterpret_cast<float*>(mine);
#pragma unroll
  for (int tile = 0; tile < kChannels / 16; tile++)
#pragma unroll
    for (int i = 0; i < 4; i++) kept[(quad * 2 + i % 2) * kApart + tile * 16 + group + i / 2 * 8] = sums[tile][i];
  const bool spoilt = wrong || __any_sync(~0u, broken);
#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int apart = 4; apart < 32; apart *= 2) total[i] += __shfl_xor_sync(~0u, total[i], apart);
    if (group == 0) warp_stats[warp][quad * 2 + i] = make_float2(top[i], spoilt ? NAN : total[i]);
  }
  __syncthreads();
  cluster::wait_for_all();

#pragma unroll
  for (int at = threadIdx.x * 4; at < kSums; at += kWarps * 32 * 4) {
    const int row = at / kChannels;
    float peak = -INFINITY, weights[kWarps], sum = 0.0f;
#pragma unroll
    for (int other = 0; other < kWarps; other++) peak = fmaxf(peak, warp_stats[other][row].x);
    float4 y = {};
#pragma unroll
    for (int other = 0; other < kWarps; other++) {
      const float2 stats = warp_stats[other][row];
      weights[other] = weight_of(stats.x, peak), sum += stats.y * weights[other];
      const float4 part = *reinterpret_cast<const float4*>(
          ring + other * kStages * 2 * kTileBytes + (row * kApart + at % kChannels) * 4);
      y.x += part.x * weights[other], y.y += part.y * weights[other];
      y.z += part.z * weights[other], y.w += part.w * weights[other];
    }
    const uint32_t place = cluster::shared_address(&received[rank * own + (at & (own - 1))]);
    const int receiver = at >> own_bits;
    cluster::send(cluster::in_program(place, receiver), y, cluster::in_program(barrier, receiver));
    // A row's largest score and sum of weights, for each program that stores a slice of it.
    const int receivers = max(kChannels >> own_bits, 1), to = (row * kChannels >> own_bits) + lane;
    if (lane < receivers)
      cluster::send(cluster::in_program(cluster::shared_address(&received_stats[rank][row]), to),
                    make_float2(peak, sum), cluster::in_program(barrier, to));
  }
  cluster::wait(barrier, 0);
  for (int at = threadIdx.x * 4; rank < storing && at < own; at += kWarps * 32 * 4) {
    const int row = (rank * own + at) / kChannels, channel = (rank * own + at) % kChannels;
    const int query = quotient(row, p.by_group);
    const long long token = start + query;
    if (row >= rows || token < 0 || token >= p.tokens) continue;
    float peak = -INFINITY, sum = 0.0f;
    for (int other = 0; other < programs; other++) peak = fmaxf(peak, received_stats[other][row].x);
    float4 y = {};
    for (int other = 0; other < programs; other++) {
      const float2 stats = received_stats[other][row];
      const float weight = weight_of(stats.x, peak);
      const float4 part = *reinterpret_cast<const float4*>(&received[other * own + at]);
      sum += stats.y * weight;
      y.x += part.x * weight, y.y += part.y * weight, y.z += part.z * weight, y.w += part.w * weight;
    }
    const long long place = token * p.heads * p.group + h * p.group + row - query * p.group;
    const float share = sum == 0.0f ? 0.0f : __fdiv_rn(1.0f, sum);
    *reinterpret_cast<uint2*>(p.out + place * kChannels + channel) =
        four(make_float4(y.x * share, y.y * share, y.z * share, y.w * share));
  }
  if (rank == 0) {
    // Tokens of no sequence, and queries beyond the promised maximum.
    fill(p, start + queries, end, h, NAN);
    if (b == 0) {
      before = min(max(before, 0ll), static_cast<long long>(p.tokens));
      fill(p, 0, before, h, 0.0f), fill(p, max(behind, before), p.tokens, h, 0.0f);
    }
  }
}

// The kernel of a shape, allowed what it needs, its threads and its shared memory.
struct Chosen {
  const void* kernel;
  int threads, bytes;
  cudaError_t wrong;
};

template <int kWarps, int kStages>
Chosen chosen() {
  Chosen found{reinterpret_cast<const void*>(attention_rows<kWarps, kStages>), kWarps * 32,
               kWarps * kStages * 2 * kTileBytes};
  // At every launch: they hold for the current device only.
  found.wrong = cudaFuncSetAttribute(found.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, found.bytes);
  if (found.wrong == cudaSuccess)
    found.wrong = cudaFuncSetAttribute(found.kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return found;
}

Chosen chosen(int warps, int stages) {
#define SHAPE(WARPS, STAGES) \
  if (warps == WARPS && stages == STAGES) return chosen<WARPS, STAGES>();
  SHAPE(8, 3) SHAPE(4, 3)
#undef SHAPE
  return {nullptr, 0, 0, cudaErrorInvalidValue};
}

}  // namespace

// How many clusters of so many programs the current device holds at once, none of a size that it refuses; negative: a
// cudaError_t.
extern "C" int minimax_m2_attention_rows_places(int warps, int stages, int programs) {
  const Chosen shape = chosen(warps, stages);
  if (shape.wrong) return -shape.wrong;
  EarlyLaunch how(programs, shape.threads, shape.bytes, nullptr, programs);
  int count = 0;
  if (how.clusters_held(shape.kernel, &count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

// Launches the kernel in clusters of so many programs, at most 16; returns a cudaError_t.
extern "C" int minimax_m2_attention_rows(int warps, int stages, int programs, const void* arguments, void* stream) {
  const Attention& p = *static_cast<const Attention*>(arguments);
  const Chosen shape = chosen(warps, stages);
  if (shape.wrong) return shape.wrong;
  const EarlyLaunch how(p.sequences * p.heads * programs, shape.threads, shape.bytes,
                        static_cast<cudaStream_t>(stream), programs);
  void* given[1] = {const_cast<void*>(arguments)};
  return cudaLaunchKernelExC(&how.config, shape.kernel, given);
}
