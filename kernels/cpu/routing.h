// Arguments of the routing kernels. Strides count elements.
#pragma once
#include "dtype.h"

namespace minimax_m2 {

constexpr int MAX_EXPERTS = 1024;
constexpr int MAX_TOP_K = 32;

struct RoutingArgs {
  const void* logits;  // [T, E], last dimension contiguous
  int64_t logits_stride;
  Dtype logits_dtype;
  const float* bias;  // [E] or null
  float* weights;     // [T, K]
  void* ids;          // [T, K]
  Dtype ids_dtype;
  int64_t num_tokens;  // rows that are routed
  int num_experts;
  int top_k;
  bool softmax;
  bool renormalize;
  double scale;
  double eps;
};

struct PackArgs {
  float* weights;  // [n], read by pack, written by unpack
  void* ids;       // [n]
  Dtype ids_dtype;
  int32_t* packed;  // [n]
  int64_t count;
  int64_t expert_start;
};

}  // namespace minimax_m2

// Both return the first row (element) whose data is not acceptable, or -1.
MINIMAX_M2_KERNEL(int64_t, routing, const RoutingArgs&)
MINIMAX_M2_KERNEL(int64_t, pack_routing, const PackArgs&)
MINIMAX_M2_KERNEL(int64_t, unpack_routing, const PackArgs&)
