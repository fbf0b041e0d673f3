// The router's logits for a few tokens: every program holds two rows of the weight in registers and meets all tokens.
//
// The weight is on its way before x is waited for, in one round of loads. A warp's sums are made for some tokens at
// once: at each step lanes exchange halves of what they hold, so a reduction of n values takes n exchanges, not 5 n.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "early_launch.cuh"

namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kExperts = 2, kMostTokens = 32;

struct Rows {
  const __nv_bfloat16* x;
  const float *weight, *bias;  // bias may be null
  float* logits;               // [tokens, experts]
  long long x_stride, weight_stride;
  int tokens, experts;
};

// Lane l ends with the warp's sum of values[l / (32 / kCount)], in values[0].
template <int kCount, int kApart>
__device__ __forceinline__ void sum_over_lanes(float* values, int lane) {
  if constexpr (kApart > 0) {
    constexpr int kHalf = kCount > 1 ? kCount / 2 : 1;
    const bool upper = lane & kApart;
#pragma unroll
    for (int i = 0; i < kHalf; i++) {
      const float given = kCount > 1 && !upper ? values[i + kCount / 2] : values[i];
      const float kept = kCount > 1 && upper ? values[i + kCount / 2] : values[i];
      values[i] = kept + __shfl_xor_sync(~0u, given, kApart);
    }
    sum_over_lanes<kHalf, kApart / 2>(values, lane);
  }
}

__device__ __forceinline__ float4 widened(uint2 four) {
  return make_float4(__uint_as_float(four.x << 16), __uint_as_float(four.x & 0xffff0000u),
                     __uint_as_float(four.y << 16), __uint_as_float(four.y & 0xffff0000u));
}

// kTokens are in flight together.
template <int kSteps, int kTokens>
__global__ void __launch_bounds__(kThreads) router_rows(const __grid_constant__ Rows p) {
  constexpr int kCount = kTokens * kExperts;
  __shared__ float sums[kWarps][kMostTokens * kExperts];
  const int lane = threadIdx.x & 31, expert = blockIdx.x * kExperts;
  float4 w[kExperts][kSteps];
#pragma unroll
  for (int e = 0; e < kExperts; e++)
#pragma unroll
    for (int step = 0; step < kSteps; step++)
      w[e][step] = __ldg(reinterpret_cast<const float4*>(p.weight + (expert + e) * p.weight_stride) +
                         step * kThreads + threadIdx.x);
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");

  uint2 x[kTokens][kSteps];
  const auto fetch = [&](int first) {
#pragma unroll
    for (int t = 0; t < kTokens; t++) {
      // A token that does not exist is the last one again: what is made of it is not stored.
      const auto* row = reinterpret_cast<const uint2*>(p.x + min(first + t, p.tokens - 1) * p.x_stride);
#pragma unroll
      for (int step = 0; step < kSteps; step++) x[t][step] = row[step * kThreads + threadIdx.x];
    }
  };
  fetch(0);
#pragma unroll 1
  for (int first = 0; first < p.tokens; first += kTokens) {
    float values[kCount];
#pragma unroll
    for (int t = 0; t < kTokens; t++)
#pragma unroll
      for (int e = 0; e < kExperts; e++) {
        float total = 0.0f;
#pragma unroll
        for (int step = 0; step < kSteps; step++) {
          const float4 four = widened(x[t][step]);
          total = fmaf(four.x, w[e][step].x, total);
          total = fmaf(four.y, w[e][step].y, total);
          total = fmaf(four.z, w[e][step].z, total);
          total = fmaf(four.w, w[e][step].w, total);
        }
        values[t * kExperts + e] = total;
      }
    if (first + kTokens < p.tokens) fetch(first + kTokens);
    sum_over_lanes<kCount, 16>(values, lane);
    if (lane % (32 / kCount) == 0)
      sums[threadIdx.x / 32][first * kExperts + lane / (32 / kCount)] = values[0];
  }
  __syncthreads();
  const int own = threadIdx.x, token = own / kExperts;
  if (token < p.tokens) {
    float total = 0.0f;
#pragma unroll
    for (int warp = 0; warp < kWarps; warp++) total += sums[warp][own];
    const int column = expert + own % kExperts;
    if (p.bias) total += p.bias[column];
    p.logits[static_cast<long long>(token) * p.experts + column] = total;
  }
}

template <int kSteps, int kTokens>
int launched(const Rows& p, cudaStream_t stream) {
  const EarlyLaunch how(p.experts / kExperts, kThreads, 0, stream);
  return cudaLaunchKernelEx(&how.config, router_rows<kSteps, kTokens>, p);
}

}  // namespace

// Launches the kernel for so many steps of 1024 channels and so many tokens at once; returns a cudaError_t.
extern "C" int minimax_m2_router_rows(int steps, int at_once, const void* x, long long x_stride, const void* weight,
                                      long long weight_stride, const void* bias, void* logits, int tokens, int experts,
                                      void* stream) {
  const Rows p{static_cast<const __nv_bfloat16*>(x), static_cast<const float*>(weight),
               static_cast<const float*>(bias), static_cast<float*>(logits), x_stride, weight_stride, tokens, experts};
  const auto at = static_cast<cudaStream_t>(stream);
  if (tokens > kMostTokens) return cudaErrorInvalidValue;
#define LAUNCH(STEPS, TOKENS) \
  if (steps == STEPS && at_once == TOKENS) return launched<STEPS, TOKENS>(p, at);
  LAUNCH(1, 1) LAUNCH(1, 2) LAUNCH(1, 4) LAUNCH(1, 8)
  LAUNCH(3, 1) LAUNCH(3, 2) LAUNCH(3, 4) LAUNCH(3, 8)
#undef LAUNCH
  return cudaErrorInvalidValue;
}
