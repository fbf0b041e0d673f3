// Products of e4m3 rows and an e4m3 weight with a scale a block of 128 x 128, on sm_90a.
//
// One thread has the copy engine fetch tiles of x and of the weight into a ring in shared memory; its warps fetch the
// scales, where those that multiply do not. One to three groups of four warps multiply a step of 128 channels on the
// tensor cores and add it, times both scales, to float32 sums in registers. A program takes one tile after the other;
// the ring knows no tile's end.
#include "early_launch.cuh"
#include "scaled_product_ahead.cuh"
#include "scaled_product_narrow.cuh"
#include "scaled_product_pair.cuh"
#include "scaled_product_wide.cuh"
#include "tensor_map.cuh"

namespace {

template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kPrograms)
    scaled_product(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
                   const __grid_constant__ Product p) {
  extern __shared__ uint8_t bytes[];
  __shared__ Exchange exchange;
  __shared__ Parts parts;
  __shared__ Halves halves;
  if (threadIdx.x == 0) hopper::fetch_map(&w_map), hopper::fetch_map(&x_map);
  const Ring ring = ring_at<S>(bytes);
  if constexpr (kJoins<S>)
    if (p.joined) begin_joined<S>(p, parts);
  if constexpr (kHalves<S>)
    if (p.joined) hopper::cluster_arrive(), hopper::cluster_wait();
  constexpr bool kPaired = S::kForm == kPair;
  if constexpr (kPaired) begin_pair<S>(halves);
  // Sums of many rows take more registers than a program's share: fetching warps leave theirs.
  constexpr bool kTrades = S::kForm != kNarrow && S::kWarpgroups >= 2;
  constexpr int kFew = S::kWarpgroups == 3 ? 32 : 40, kMany = S::kWarpgroups == 3 ? 160 : 232;
  if (threadIdx.x >= 128 * S::kWarpgroups) {
    if constexpr (kTrades) hopper::give_registers<kFew>();
    if constexpr (kPaired) {
      fetch_for_both<S>(&x_map, &w_map, p, ring);
    } else {
      fetch<S>(&x_map, &w_map, p, ring);
    }
    if (kJoins<S> && p.joined) hopper::cluster_wait();
  } else {
    if constexpr (kTrades) hopper::take_registers<kMany>();
    if constexpr (S::kForm == kNarrow) {
      multiply_narrow<S>(p, ring, exchange, parts);
    } else if constexpr (S::kForm == kAhead) {
      multiply_ahead<S>(p, ring);
    } else if constexpr (kPaired) {
      multiply_paired<S>(p, ring, halves);
    } else {
      multiply_wide<S>(p, ring);
    }
  }
  if constexpr (kPaired) end_pair();
}

struct Rows {
  const void* codes;
  long long count, stride;
};

// A step of channels of some rows is fetched at a time.
bool codes_map(CUtensorMap* map, const Rows& rows, int groups, int box_rows) {
  return rows_map(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, rows.codes, rows.count, static_cast<long long>(groups) * kStep,
                  rows.stride, box_rows);
}

// Clusters of so many programs that the current device holds at once; none where it cannot.
template <class S>
int clusters(int programs) {
  int found = 0;
  if (cudaFuncSetAttribute(scaled_product<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kBytes) != cudaSuccess)
    return 0;
  EarlyLaunch launch(programs, S::kThreads, S::kBytes, nullptr, programs);
  if (launch.clusters_held(reinterpret_cast<const void*>(scaled_product<S>), &found) == cudaSuccess) return found;
  cudaGetLastError();
  return 0;
}

template <class S>
int launched(const Rows& x, const Rows& weight, const Product& p, int programs, cudaStream_t stream) {
  auto* kernel = scaled_product<S>;
  // At every launch: it holds for the current device only.
  const cudaError_t allowed =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kBytes);
  if (allowed != cudaSuccess) return allowed;
  CUtensorMap x_map, w_map;
  const int groups = p.parts * p.steps;
  if (!codes_map(&x_map, x, groups, S::kBox) || !codes_map(&w_map, weight, groups, S::kColumns))
    return cudaErrorInvalidValue;
  const int together = p.joined ? p.parts : S::kSharing;
  const EarlyLaunch launch(programs, S::kThreads, S::kBytes, stream, together > 1 ? together : 0);
  return cudaLaunchKernelEx(&launch.config, kernel, x_map, w_map, p);
}

}  // namespace

// Launches the kernel of a mode and a tile (rows, columns); returns a cudaError_t.
extern "C" int minimax_m2_scaled_product(int mode, int rows, int columns, const void* x, long long x_rows,
                                         long long x_stride, const void* weight, long long weight_rows,
                                         long long weight_stride, const void* arguments, int programs, void* stream) {
  const Rows left{x, x_rows, x_stride}, right{weight, weight_rows, weight_stride};
  const Product& p = *static_cast<const Product*>(arguments);
  const auto at = static_cast<cudaStream_t>(stream);
#define LAUNCH(MODE, ROWS, COLUMNS, BLOCKS, EACH, WARPGROUPS, STAGES, FORM) \
  if (mode == MODE && rows == ROWS && columns == COLUMNS)                   \
    return launched<Shape<MODE, ROWS, BLOCKS, EACH, WARPGROUPS, STAGES, FORM>>(left, right, p, programs, at);
  LAUNCH(kDense, 16, 64, 1, 64, 1, 8, kNarrow)
  LAUNCH(kDense, 32, 64, 1, 64, 1, 8, kNarrow)
  LAUNCH(kDense, 64, 64, 1, 64, 1, 12, kAhead)
  LAUNCH(kDense, 128, 64, 1, 64, 2, 8, kAhead)
  LAUNCH(kDense, 128, 96, 1, 96, 2, 7, kAhead)
  LAUNCH(kDense, 128, 128, 1, 128, 2, 6, kAhead)
  LAUNCH(kDense, 128, 256, 2, 128, 2, 4, kWide)
  LAUNCH(kDense, 192, 256, 1, 128, 3, 5, kPair)
  LAUNCH(kGateUp, 16, 128, 2, 128, 2, 6, kNarrow)
  LAUNCH(kGateUp, 32, 128, 2, 128, 2, 5, kNarrow)
  LAUNCH(kGateUp, 64, 128, 2, 128, 2, 5, kNarrow)
  LAUNCH(kGateUp, 128, 128, 2, 128, 2, 4, kWide)
  LAUNCH(kGateUp, 192, 128, 2, 64, 3, 5, kPair)
  LAUNCH(kDown, 16, 256, 2, 128, 2, 6, kNarrow)
  LAUNCH(kDown, 32, 256, 2, 128, 2, 5, kNarrow)
  LAUNCH(kDown, 64, 256, 2, 128, 2, 5, kAhead)
  LAUNCH(kDown, 128, 256, 2, 128, 2, 4, kWide)
  LAUNCH(kDown, 192, 256, 1, 128, 3, 5, kPair)
#undef LAUNCH
  return cudaErrorInvalidValue;
}

// Clusters of so many programs of a kernel that the current device holds at once: tiles are of 16 rows.
extern "C" int minimax_m2_clusters(int mode, int programs) {
  switch (mode) {
    case kDense: return clusters<Shape<kDense, 16, 1, 64, 1, 8, kNarrow>>(programs);
    case kGateUp: return clusters<Shape<kGateUp, 16, 2, 128, 2, 6, kNarrow>>(programs);
    case kDown: return clusters<Shape<kDown, 16, 2, 128, 2, 6, kNarrow>>(programs);
  }
  return 0;
}
