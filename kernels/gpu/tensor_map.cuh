// What the copy engine is told of a tensor before a launch: its rows, and how many of them it fetches at a time.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode encoder() {
  static const Encode found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
    return result == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(function) : nullptr;
  }();
  return found;
}

// Rows of 128 bytes of ``kind`` elements, each of ``size`` bytes, are fetched ``box_rows`` at a time.
bool rows_map(CUtensorMap* map, CUtensorMapDataType kind, int size, const void* at, long long rows, long long channels,
              long long stride, int box_rows) {
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(channels), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(stride * size)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(128 / size), static_cast<cuuint32_t>(box_rows)}, every[2] = {1, 1};
  return encoder() != nullptr &&
         encoder()(map, kind, 2, const_cast<void*>(at), sizes, strides, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE,
                   CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                   CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace
