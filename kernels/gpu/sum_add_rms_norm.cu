// The sum of a row over the ranks, the residual's addition, RMSNorm, and e4m3 codes of it where asked: a program a row.
//
// A program sends its row to every other rank, word by word, and adds theirs as they arrive, in the order of the ranks,
// in float32. Whatever is not another rank's is read before it waits.
#include "early_launch.cuh"
#include "mailbox.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

struct Row {
  const void *x, *residual, *weight;
  void *y, *residual_out;
  uint8_t* q;
  float* scale;
  long long x_stride, residual_stride;
  int width;
  float eps;
};

namespace {

constexpr int kWarp = 32, kMostThreads = 512;
// Channels that share a scale: what a warp of 16-bit elements holds at a time.
constexpr int kGroup = 128;
constexpr float kLargest = 448.0f;

// Eight bytes of a row are two words, and so many elements.
template <class T>
constexpr int kEach = 8 / sizeof(T);

__device__ __forceinline__ void widen(uint32_t word, float (&to)[1], float) { to[0] = __uint_as_float(word); }
__device__ __forceinline__ void widen(uint32_t word, float (&to)[2], __nv_bfloat16) {
  to[0] = __uint_as_float(word << 16), to[1] = __uint_as_float(word & 0xffff0000u);
}
__device__ __forceinline__ void widen(uint32_t word, float (&to)[2], __half) {
  const float2 both = __half22float2(*reinterpret_cast<const __half2*>(&word));
  to[0] = both.x, to[1] = both.y;
}

template <class T>
__device__ __forceinline__ void widened(uint2 bytes, float (&to)[kEach<T>]) {
  constexpr int half = kEach<T> / 2;
  float part[half];
  widen(bytes.x, part, T{});
#pragma unroll
  for (int e = 0; e < half; ++e) to[e] = part[e];
  widen(bytes.y, part, T{});
#pragma unroll
  for (int e = 0; e < half; ++e) to[half + e] = part[e];
}

__device__ __forceinline__ uint2 narrowed(const float (&x)[2], float) {
  return {__float_as_uint(x[0]), __float_as_uint(x[1])};
}
__device__ __forceinline__ uint2 narrowed(const float (&x)[4], __nv_bfloat16) {
  const __nv_bfloat162 first = __floats2bfloat162_rn(x[0], x[1]), second = __floats2bfloat162_rn(x[2], x[3]);
  return {*reinterpret_cast<const uint32_t*>(&first), *reinterpret_cast<const uint32_t*>(&second)};
}
__device__ __forceinline__ uint2 narrowed(const float (&x)[4], __half) {
  const __half2 first = __floats2half2_rn(x[0], x[1]), second = __floats2half2_rn(x[2], x[3]);
  return {*reinterpret_cast<const uint32_t*>(&first), *reinterpret_cast<const uint32_t*>(&second)};
}

// Nothing that another kernel writes may be touched before the wait; later kernels may then take their places, behind a
// single row before.
__device__ __forceinline__ void begin() {
#if __CUDA_ARCH__ >= 900
  if (gridDim.x == 1) asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ float summed_over_block(float x) {
  __shared__ float parts[kMostThreads / kWarp];
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = x;
  __syncthreads();
  const int warps = blockDim.x / kWarp, lane = threadIdx.x % kWarp;
  x = lane < warps ? parts[lane] : 0.0f;
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

// Codes of a warp's group, whose scale makes the largest magnitude 448; NaN stays NaN.
template <class T>
__device__ __forceinline__ void encode(const Row& r, int row, int chunk, const float (&y)[kEach<T>]) {
  uint32_t magnitude = 0;
#pragma unroll
  for (float element : y) magnitude = max(magnitude, __float_as_uint(element) & 0x7fffffffu);
  magnitude = __reduce_max_sync(~0u, magnitude);
  const float largest = __uint_as_float(magnitude);
  const float scale = __fdiv_rn(largest < 1e-10f ? 1e-10f : largest, kLargest);
  const float reciprocal = __fdiv_rn(1.0f, scale);
  uint32_t codes = 0;
#pragma unroll
  for (int e = 0; e < kEach<T>; ++e)
    codes |= static_cast<uint32_t>(__nv_cvt_float_to_fp8(y[e] * reciprocal, __NV_SATFINITE, __NV_E4M3)) << (8 * e);
  const int64_t at = static_cast<int64_t>(row) * r.width + chunk * kEach<T>;
  *reinterpret_cast<uint32_t*>(r.q + at) = codes;
  if (threadIdx.x % kWarp == 0) r.scale[at / kGroup] = scale;
}

// A thread has CHUNKS runs of eight bytes, each a block's width apart.
template <class T, int CHUNKS, bool CODED>
__global__ void __launch_bounds__(kMostThreads) sum_add_rms_norm(const __grid_constant__ Row r, const __grid_constant__ Mailbox m) {
  constexpr int each = kEach<T>;
  const int row = blockIdx.x, chunks = r.width / each;
  const auto* x = reinterpret_cast<const uint2*>(static_cast<const T*>(r.x) + row * r.x_stride);
  const auto* residual = reinterpret_cast<const uint2*>(static_cast<const T*>(r.residual) + row * r.residual_stride);
  const auto* weight = static_cast<const uint2*>(r.weight);
  uint2 weights[CHUNKS], own[CHUNKS], streams[CHUNKS];
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const int chunk = threadIdx.x + c * blockDim.x;
    weights[c] = chunk < chunks ? weight[chunk] : uint2{};
  }
  begin();
  const uint32_t turn = m.turns[row] + 1, flag = mailbox::flag(m, turn);
  const long long patience = mailbox::patience(m);
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const int chunk = threadIdx.x + c * blockDim.x;
    own[c] = chunk < chunks ? x[chunk] : uint2{};
  }
  for (int owner = 0; owner < m.ranks; ++owner) {
    if (owner == m.rank) continue;
    uint64_t* there = mailbox::row_of(m, owner, m.rank, turn, row);
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      const int chunk = threadIdx.x + c * blockDim.x;
      if (chunk < chunks) mailbox::send(there + 2 * chunk, own[c].x, own[c].y, flag);
    }
  }
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const int chunk = threadIdx.x + c * blockDim.x;
    streams[c] = chunk < chunks ? residual[chunk] : uint2{};
  }

  float z[CHUNKS][each] = {};
  const long long start = clock64();
  for (int sender = 0; sender < m.ranks; ++sender) {
    const uint64_t* here = mailbox::row_of(m, m.rank, sender, turn, row);
    uint2 words[CHUNKS] = {};
    bool has_come = true;
    if (sender == m.rank) {
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c) words[c] = own[c];
    } else {
      uint32_t found = flag;
      do {
        has_come = true;
#pragma unroll
        for (int c = 0; c < CHUNKS; ++c) {
          const int chunk = threadIdx.x + c * blockDim.x;
          if (chunk >= chunks) continue;
          const mailbox::Pair pair = mailbox::look(here + 2 * chunk);
          words[c] = {static_cast<uint32_t>(pair.first), static_cast<uint32_t>(pair.second)};
          if (mailbox::flag_of(pair.first) != flag) found = mailbox::flag_of(pair.first), has_come = false;
          if (mailbox::flag_of(pair.second) != flag) found = mailbox::flag_of(pair.second), has_come = false;
        }
      } while (!has_come && clock64() - start < patience);
      if (!has_come) mailbox::give_up(m, sender, turn, found);
    }
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      float part[each];
      widened<T>(words[c], part);
#pragma unroll
      for (int e = 0; e < each; ++e) {
        part[e] = has_come ? part[e] : __int_as_float(0x7fffffff);
        z[c][e] = sender == 0 ? part[e] : z[c][e] + part[e];
      }
    }
  }

  float squares = 0;
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const int chunk = threadIdx.x + c * blockDim.x;
    if (chunk >= chunks) continue;
    float stream[each];
    widened<T>(streams[c], stream);
#pragma unroll
    for (int e = 0; e < each; ++e) {
      z[c][e] += stream[e];
      squares += z[c][e] * z[c][e];
    }
    static_cast<uint2*>(r.residual_out)[static_cast<int64_t>(row) * chunks + chunk] = narrowed(z[c], T{});
  }
  // Both steps correctly rounded, unlike rsqrt. Every thread has read the turn before this.
  const float mean = __fdiv_rn(summed_over_block(squares), static_cast<float>(r.width));
  const float scale = __fdiv_rn(1.0f, __fsqrt_rn(mean + r.eps));
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const int chunk = threadIdx.x + c * blockDim.x;
    if (chunk >= chunks) continue;
    float w[each], y[each];
    widened<T>(weights[c], w);
#pragma unroll
    for (int e = 0; e < each; ++e) y[e] = z[c][e] * scale * w[e];
    if constexpr (CODED) {
      encode<T>(r, row, chunk, y);
    } else {
      static_cast<uint2*>(r.y)[static_cast<int64_t>(row) * chunks + chunk] = narrowed(y, T{});
    }
  }
  if (threadIdx.x == 0) m.turns[row] = static_cast<int>(turn);
}

template <class T, int CHUNKS, bool CODED>
int launched(const Row& r, const Mailbox& m, int programs, int threads, bool early, cudaStream_t stream) {
  EarlyLaunch how(programs, threads, 0, stream);
  if (!early) how.config.numAttrs = 0;
  return cudaLaunchKernelEx(&how.config, sum_add_rms_norm<T, CHUNKS, CODED>, r, m);
}

template <class T>
int cut(const Row& r, const Mailbox& m, int programs, bool early, cudaStream_t stream) {
  const int chunks = r.width / kEach<T>;
#define LAUNCH(CHUNKS, CODED)                                                                    \
  if (chunks <= CHUNKS * kMostThreads && (r.q != nullptr) == CODED) {                            \
    const int threads = ((chunks + CHUNKS - 1) / CHUNKS + kWarp - 1) / kWarp * kWarp;            \
    return launched<T, CHUNKS, CODED>(r, m, programs, threads, early, stream);                   \
  }
  LAUNCH(1, false)
  LAUNCH(2, false)
  LAUNCH(4, false)
  if constexpr (kEach<T> == 4) {
    LAUNCH(1, true)
    LAUNCH(2, true)
    LAUNCH(4, true)
  }
#undef LAUNCH
  return cudaErrorInvalidValue;
}

}  // namespace

// Launches a program a row; dtype is 0 for float32, 1 for bfloat16, 2 for float16. Returns a cudaError_t.
extern "C" int minimax_m2_sum_add_rms_norm(int dtype, const void* row, const void* mailbox, int programs, int early,
                                           void* stream) {
  const Row& r = *static_cast<const Row*>(row);
  const Mailbox& m = *static_cast<const Mailbox*>(mailbox);
  const auto at = static_cast<cudaStream_t>(stream);
  switch (dtype) {
    case 0: return cut<float>(r, m, programs, early, at);
    case 1: return cut<__nv_bfloat16>(r, m, programs, early, at);
    case 2: return cut<__half>(r, m, programs, early, at);
  }
  return cudaErrorInvalidValue;
}
