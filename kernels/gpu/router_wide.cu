// The router's logits for many tokens on sm_90's warpgroup products, in true float32: a weight is three bfloat16 words.
//
// A program makes the logits of 128 experts for a tile of tokens from a slice of the channels. One thread has the copy
// engine fetch tiles of x and of the float32 weight into a ring; each of two groups of four warps cuts 64 experts'
// weights in registers, where the tensor cores take them. A fresh sum each step of 64 channels: a tensor core cuts it
// towards zero, the more the longer it grows. The programs of a cluster have a slice each, and add up in each other's
// memory, in the order of the slices.
#include <cuda_bf16.h>

#include "cluster.cuh"
#include "early_launch.cuh"
#include "hopper.cuh"
#include "tensor_map.cuh"

namespace {

constexpr int kExperts = 128, kStep = 64, kStages = 3, kConsumers = 256, kThreads = kConsumers + 128, kMostSlices = 8;
constexpr int kBox = 32, kBoxBytes = kExperts * kBox * 4;
// Floats from token to token where sums wait to be added: stores then meet every bank once.
constexpr int kApart = kExperts + 4;

struct Product {
  const float* bias;  // may be null
  float* logits;      // [tokens, experts]
  int tokens, experts, steps;
};

template <int kTokens>
struct Shape {
  static constexpr int kXBytes = kTokens * kStep * 2, kStageBytes = kXBytes + 2 * kBoxBytes;
  // Each slice's tokens are rounded up.
  static constexpr int kSumBytes = (kTokens + kMostSlices) * kApart * 4;
  static constexpr int kBytes = kStages * kStageBytes + kSumBytes + 1024;
  static_assert(kTokens * kApart * 4 <= kStages * kStageBytes, "sums leave by way of the ring");
};

#define D8(i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define D32(i) D8(i), D8(i + 8), D8(i + 16), D8(i + 24)

// d[64, 2 * count] = (accumulate ? d : 0) + a[64, 16] * b[2 * count, 16]^T of bfloat16.
__device__ __forceinline__ void product(float (&d)[32], const uint32_t (&a)[4], uint64_t b, int accumulate) {
  asm volatile(
      "{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %37, 0;\n\t"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
      "{%32,%33,%34,%35}, %36, p, 1, 1, 0;\n\t}"
      : D32(0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}

__device__ __forceinline__ void product(float (&d)[64], const uint32_t (&a)[4], uint64_t b, int accumulate) {
  asm volatile(
      "{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %69, 0;\n\t"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
      "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
      "{%64,%65,%66,%67}, %68, p, 1, 1, 0;\n\t}"
      : D32(0), D32(32)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}

#undef D32
#undef D8

__device__ __forceinline__ uint32_t pair(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

// Copies own shared memory into another program's; its barrier counts the bytes.
__device__ __forceinline__ void copy_to_program(uint32_t to, uint32_t from, int bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "r"(from), "r"(bytes), "r"(barrier) : "memory");
}

template <int kTokens>
__global__ void __launch_bounds__(kThreads, 1)
    router_wide(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
                const __grid_constant__ Product p) {
  using S = Shape<kTokens>;
  extern __shared__ uint8_t bytes[];
  __shared__ uint64_t filled[kStages], emptied[kStages], summed;
  const uint32_t ring = (hopper::shared_address(bytes) + 1023) & ~1023u, sums_at = ring + kStages * S::kStageBytes;
  const int slices = cluster::size(), slice = cluster::rank();
  const int expert_tiles = (p.experts + kExperts - 1) / kExperts, tile = blockIdx.x / slices;
  const int expert = tile % expert_tiles * kExperts, token = tile / expert_tiles * kTokens;
  const int first = p.steps * slice / slices, steps = p.steps * (slice + 1) / slices - first;
  // Tokens whose logits this program stores.
  const int own = (kTokens + slices - 1) / slices, stored = min(own, kTokens - slice * own);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; stage++) {
      hopper::barrier_init(hopper::shared_address(&filled[stage]), 1);
      hopper::barrier_init(hopper::shared_address(&emptied[stage]), kConsumers / 32);
    }
    hopper::barrier_init(hopper::shared_address(&summed), 1);
    hopper::barriers_made();
    hopper::arrive_and_expect(hopper::shared_address(&summed), (slices - 1) * stored * kApart * 4);
  }
  __syncthreads();
  cluster::arrive();

  if (threadIdx.x >= kConsumers) {
    hopper::give_registers<40>();
    if (threadIdx.x == kConsumers) {
      const auto fetch_weight = [&](int step) {
        const uint32_t at = ring + step % kStages * S::kStageBytes + S::kXBytes;
        const uint32_t barrier = hopper::shared_address(&filled[step % kStages]);
        hopper::arrive_and_expect(barrier, S::kStageBytes);
        for (int box = 0; box < 2; box++)
          hopper::copy_tile(at + box * kBoxBytes, &w_map, (first + step) * kStep + box * kBox, expert, barrier);
      };
      const auto fetch_x = [&](int step) {
        hopper::copy_tile(ring + step % kStages * S::kStageBytes, &x_map, (first + step) * kStep, token,
                          hopper::shared_address(&filled[step % kStages]));
      };
      for (int step = 0; step < min(steps, kStages); step++) fetch_weight(step);
      hopper::wait_for_predecessor();
      for (int step = 0; step < min(steps, kStages); step++) fetch_x(step);
      for (int step = kStages; step < steps; step++) {
        hopper::wait(hopper::shared_address(&emptied[step % kStages]), (step / kStages - 1) & 1);
        fetch_weight(step), fetch_x(step);
      }
    }
    __syncwarp();
    cluster::wait_for_all();
  } else {
    hopper::take_registers<232>();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int group = lane / 4, quad = lane % 4;
    float total[kTokens / 2] = {}, sums[kTokens / 2];
    // A tensor core's rows are experts in any order: a thread's two lie side by side, so that no bank is met twice.
    const int row = warp * 16 + group * 2;
    // Cuts a step's weights for the tensor cores, once they are here.
    const auto cut = [&](int step, uint32_t (&words)[4][3][4]) {
      const int stage = step % kStages;
      hopper::wait(hopper::shared_address(&filled[stage]), step / kStages & 1);
      const uint8_t* w_at = bytes + (ring + stage * S::kStageBytes + S::kXBytes - hopper::shared_address(bytes));
#pragma unroll
      for (int k = 0; k < 4; k++)
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
          for (int i = 0; i < 2; i++) {
            const int chunk = k % 2 * 4 + half * 2 + quad / 2, e = row + i;
            const float2 w = *reinterpret_cast<const float2*>(w_at + k / 2 * kBoxBytes + e * 128 +
                                                              ((chunk ^ (e & 7)) << 4) + quad % 2 * 8);
            float low = w.x, high = w.y;
#pragma unroll
            for (int word = 0; word < 3; word++) {
              words[k][word][half * 2 + i] = pair(low, high);
              low -= __uint_as_float(words[k][word][half * 2 + i] << 16);
              high -= __uint_as_float(words[k][word][half * 2 + i] & 0xffff0000u);
            }
          }
    };
    const auto multiply = [&](int step, const uint32_t (&words)[4][3][4]) {
      const uint32_t x_at = ring + step % kStages * S::kStageBytes;
      hopper::keep_in_place(sums);
      hopper::products_begin();
#pragma unroll
      for (int word = 2; word >= 0; word--)
#pragma unroll
        for (int k = 0; k < 4; k++)
          product(sums, words[k][word], hopper::matrix_at(x_at + k * 32), word != 2 || k != 0);
      asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    };
    const auto add = [&](int step) {
      asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
      hopper::keep_in_place(sums);
      if (lane == 0) hopper::arrive(hopper::shared_address(&emptied[step % kStages]));
#pragma unroll
      for (int i = 0; i < kTokens / 2; i++) total[i] += sums[i];
    };
    if constexpr (kTokens == 64) {
      // The next step is cut while this one is multiplied.
      uint32_t words[2][4][3][4];
      cut(0, words[0]);
#pragma unroll 1
      for (int step = 0; step < steps; step += 2) {
        multiply(step, words[0]);
        if (step + 1 < steps) cut(step + 1, words[1]);
        add(step);
        if (step + 1 < steps) {
          multiply(step + 1, words[1]);
          if (step + 2 < steps) cut(step + 2, words[0]);
          add(step + 1);
        }
      }
    } else {
#pragma unroll 1
      for (int step = 0; step < steps; step++) {
        uint32_t words[4][3][4];
        cut(step, words), multiply(step, words), add(step);
      }
    }
    hopper::let_next_start();
    // Both groups have left the ring: sums wait there to be copied.
    asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");
    float* const leaving = reinterpret_cast<float*>(bytes + (ring - hopper::shared_address(bytes)));
#pragma unroll
    for (int j = 0; j < kTokens / 8; j++)
#pragma unroll
      for (int i = 0; i < 2; i++)
        *reinterpret_cast<float2*>(leaving + (j * 8 + quad * 2 + i) * kApart + row) =
            make_float2(total[j * 4 + i], total[j * 4 + 2 + i]);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");
    cluster::wait_for_all();
    // What another program stores is copied to it; its own slice it adds from where it lies.
    if (threadIdx.x < slices && threadIdx.x != slice) {
      const int to = threadIdx.x, from = slice - (slice > to);
      const int theirs = min(own, kTokens - to * own) * kApart * 4;
      copy_to_program(cluster::in_program(sums_at + from * theirs, to), ring + to * own * kApart * 4, theirs,
                      cluster::in_program(hopper::shared_address(&summed), to));
    }
    __syncwarp();
    cluster::wait(hopper::shared_address(&summed), 0);
    const float* const arrived = reinterpret_cast<const float*>(bytes + (sums_at - hopper::shared_address(bytes)));
    for (int at = threadIdx.x; at < stored * (kExperts / 4); at += kConsumers) {
      const int t = at / (kExperts / 4), e = at % (kExperts / 4) * 4, row = token + slice * own + t;
      if (row >= p.tokens || expert + e >= p.experts) continue;
      float4 y = {};
      for (int other = 0; other < slices; other++) {
        // In the order of the slices, whoever adds.
        const int from = other - (other > slice);
        const float4 part = *reinterpret_cast<const float4*>(
            other == slice ? leaving + (slice * own + t) * kApart + e : arrived + (from * stored + t) * kApart + e);
        y.x += part.x, y.y += part.y, y.z += part.z, y.w += part.w;
      }
      if (p.bias) {
        const float4 b = *reinterpret_cast<const float4*>(p.bias + expert + e);
        y.x += b.x, y.y += b.y, y.z += b.z, y.w += b.w;
      }
      *reinterpret_cast<float4*>(p.logits + static_cast<long long>(row) * p.experts + expert + e) = y;
    }
  }
  // Nobody ends while its memory is being copied.
  cluster::arrive(), cluster::wait_for_all();
}

template <int kTokens>
int launched(const CUtensorMap& x_map, const CUtensorMap& w_map, const Product& p, int slices, cudaStream_t stream) {
  auto* kernel = router_wide<kTokens>;
  // At every launch: it holds for the current device only.
  const cudaError_t allowed =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape<kTokens>::kBytes);
  if (allowed != cudaSuccess) return allowed;
  const int tiles = (p.tokens + kTokens - 1) / kTokens * ((p.experts + kExperts - 1) / kExperts);
  const EarlyLaunch how(tiles * slices, kThreads, Shape<kTokens>::kBytes, stream, slices);
  return cudaLaunchKernelEx(&how.config, kernel, x_map, w_map, p);
}

}  // namespace

// Launches the kernel in tiles of 64 or 128 tokens and so many slices of the channels; returns a cudaError_t.
extern "C" int minimax_m2_router_wide(int tile, int slices, const void* x, long long x_stride,
                                      const void* weight, long long weight_stride, const void* bias, void* logits,
                                      int tokens, int experts, int channels, void* stream) {
  const Product p{static_cast<const float*>(bias), static_cast<float*>(logits), tokens, experts, channels / kStep};
  CUtensorMap x_map, w_map;
  if (!rows_map(&x_map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, x, tokens, channels, x_stride, tile) ||
      !rows_map(&w_map, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 4, weight, experts, channels, weight_stride, kExperts))
    return cudaErrorInvalidValue;
  const auto at = static_cast<cudaStream_t>(stream);
  if (slices > kMostSlices) return cudaErrorInvalidValue;
  if (tile == 64) return launched<64>(x_map, w_map, p, slices, at);
  if (tile == 128) return launched<128>(x_map, w_map, p, slices, at);
  return cudaErrorInvalidValue;
}
