// The router's logits for some tokens on tensor cores, in true float32: a weight is three bfloat16 words, its sum.
//
// A cluster of programs makes the logits of 16 experts, each from a slice of the channels, each warp from a part of it:
// a tile of tokens reads the weight once, and x once for 16 experts. The weight is on its way before x is waited for.
// Slices are added in one order, in the shared memory of the program that stores the logit.
#include <cuda_bf16.h>

#include "cluster.cuh"
#include "early_launch.cuh"

namespace {

constexpr int kExperts = 16, kSlices = 8, kChannels = 16;
// Floats from token to token: a warp's sums then meet every bank once.
constexpr int kApart = kExperts + 4;

struct Product {
  const __nv_bfloat16* x;
  const float *weight, *bias;  // bias may be null
  float* logits;               // [tokens, experts]
  long long x_stride, weight_stride;
  int tokens, experts;
};

__device__ __forceinline__ uint32_t pair(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

// Three pairs of bfloat16 that add up to two floats.
__device__ __forceinline__ void cut(float low, float high, uint32_t (&words)[3]) {
#pragma unroll
  for (int i = 0; i < 3; i++) {
    words[i] = pair(low, high);
    low -= __uint_as_float(words[i] << 16), high -= __uint_as_float(words[i] & 0xffff0000u);
  }
}

// sums[16, 8] += a[16, 16] * b[8, 16]^T
__device__ __forceinline__ void multiply(float (&sums)[4], const uint32_t (&a)[4], uint2 b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}

template <int kSteps, int kTokens, int kWarps>
__global__ void __launch_bounds__(kWarps * 32) router_tiles(const __grid_constant__ Product p) {
  constexpr int kTiles = kTokens / 8, kSums = kTokens * kExperts, kOwn = kSums / kSlices;
  __shared__ __align__(16) float parts[kWarps][kTokens][kApart];
  __shared__ __align__(16) float slices[kSlices][kOwn];
  __shared__ uint64_t arrived;
  const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
  const int slice = blockIdx.x % kSlices, expert = blockIdx.x / kSlices * kExperts, first = blockIdx.y * kTokens;
  const int channel = (slice * kWarps + warp) * kSteps * kChannels + quad * 4;
  const uint32_t barrier = cluster::shared_address(&arrived);
  if (threadIdx.x == 0) cluster::expect(barrier, kSums * 4);
  cluster::arrive();

  // A step's channels come in any order, the same for both factors: a thread's four lie side by side.
  float4 w[kSteps][2];
#pragma unroll
  for (int step = 0; step < kSteps; step++)
#pragma unroll
    for (int half = 0; half < 2; half++)
      w[step][half] = __ldg(reinterpret_cast<const float4*>(
          p.weight + (expert + group + half * 8) * p.weight_stride + channel + step * kChannels));
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");

  uint2 x[kTiles][kSteps];
#pragma unroll
  for (int tile = 0; tile < kTiles; tile++) {
    // A token that does not exist is the last one again: what is made of it is not stored.
    const auto* row = p.x + min(first + tile * 8 + group, p.tokens - 1) * p.x_stride + channel;
#pragma unroll
    for (int step = 0; step < kSteps; step++) x[tile][step] = *reinterpret_cast<const uint2*>(row + step * kChannels);
  }
  float sums[kTiles][4] = {};
#pragma unroll
  for (int step = 0; step < kSteps; step++) {
    uint32_t words[4][3];
    cut(w[step][0].x, w[step][0].y, words[0]), cut(w[step][1].x, w[step][1].y, words[1]);
    cut(w[step][0].z, w[step][0].w, words[2]), cut(w[step][1].z, w[step][1].w, words[3]);
#pragma unroll
    for (int word = 2; word >= 0; word--) {
      const uint32_t a[4] = {words[0][word], words[1][word], words[2][word], words[3][word]};
#pragma unroll
      for (int tile = 0; tile < kTiles; tile++) multiply(sums[tile], a, x[tile][step]);
    }
  }
#pragma unroll
  for (int tile = 0; tile < kTiles; tile++)
#pragma unroll
    for (int i = 0; i < 4; i++) parts[warp][tile * 8 + quad * 2 + i % 2][group + i / 2 * 8] = sums[tile][i];
  __syncthreads();
  cluster::wait_for_all();

  for (int at = threadIdx.x * 4; at < kSums; at += kWarps * 32 * 4) {
    float4 total = {};
#pragma unroll
    for (int other = 0; other < kWarps; other++) {
      const float4 part = *reinterpret_cast<const float4*>(&parts[other][at / kExperts][at % kExperts]);
      total.x += part.x, total.y += part.y, total.z += part.z, total.w += part.w;
    }
    cluster::send(cluster::in_program(cluster::shared_address(&slices[slice][at % kOwn]), at / kOwn), total,
                  cluster::in_program(barrier, at / kOwn));
  }
  cluster::wait(barrier, 0);
  for (int at = threadIdx.x; at < kOwn; at += kWarps * 32) {
    const int token = first + (slice * kOwn + at) / kExperts, column = expert + at % kExperts;
    if (token >= p.tokens) break;
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < kSlices; i++) total += slices[i][at];
    if (p.bias) total += p.bias[column];
    p.logits[static_cast<long long>(token) * p.experts + column] = total;
  }
}

template <int kSteps, int kTokens, int kWarps>
int launched(const Product& p, cudaStream_t stream) {
  const dim3 programs(p.experts / kExperts * kSlices, (p.tokens + kTokens - 1) / kTokens);
  const EarlyLaunch how(programs, kWarps * 32, 0, stream, kSlices);
  return cudaLaunchKernelEx(&how.config, router_tiles<kSteps, kTokens, kWarps>, p);
}

}  // namespace

// Launches the kernel for so many channels, in tiles of 16 or 32 tokens; returns a cudaError_t.
extern "C" int minimax_m2_router_tiles(int channels, int tile, const void* x, long long x_stride, const void* weight,
                                       long long weight_stride, const void* bias, void* logits, int tokens, int experts,
                                       void* stream) {
  const Product p{static_cast<const __nv_bfloat16*>(x), static_cast<const float*>(weight),
                  static_cast<const float*>(bias), static_cast<float*>(logits), x_stride, weight_stride, tokens,
                  experts};
  const auto at = static_cast<cudaStream_t>(stream);
#define LAUNCH(STEPS, TOKENS, WARPS) \
  if (channels == STEPS * WARPS * kSlices * kChannels && tile == TOKENS) return launched<STEPS, TOKENS, WARPS>(p, at);
  LAUNCH(1, 16, 8) LAUNCH(2, 32, 4)
  LAUNCH(2, 16, 12) LAUNCH(6, 32, 4)
#undef LAUNCH
  return cudaErrorInvalidValue;
}
