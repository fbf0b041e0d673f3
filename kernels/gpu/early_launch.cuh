// How the host launches kernels of this folder: before the kernel ahead has ended, and in clusters.
#pragma once

#include <cuda_runtime.h>

// What a CUDA error is called; each unit is a library of its own, asked by name.
extern "C" const char* minimax_m2_error(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

namespace {

// The configuration of a launch. It points into itself: not to be copied.
struct EarlyLaunch {
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};

  // ``cluster`` programs run side by side and reach each other's memory; 0 for kernels that do not.
  EarlyLaunch(dim3 programs, int threads, size_t bytes, cudaStream_t stream, int cluster = 0) {
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = cluster, attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    config.gridDim = programs, config.blockDim = threads, config.dynamicSmemBytes = bytes, config.stream = stream;
    config.attrs = attributes, config.numAttrs = cluster > 0 ? 2 : 1;
  }
  EarlyLaunch(const EarlyLaunch&) = delete;
  EarlyLaunch& operator=(const EarlyLaunch&) = delete;

  // How many of its clusters the current device holds at once.
  cudaError_t clusters_held(const void* kernel, int* count) {
    config.attrs = attributes + 1, config.numAttrs = 1;
    return cudaOccupancyMaxActiveClusters(count, kernel, &config);
  }
};

}  // namespace
