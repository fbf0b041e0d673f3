// Arguments of the experts kernel. Strides count elements.
#pragma once
#include "dtype.h"

namespace minimax_m2 {

struct ExpertsArgs {
  const void* x;  // [T, H], last dimension contiguous
  int64_t x_stride;
  Dtype x_dtype;
  const float* x_scale;  // [T, ceil(H/columns)] or null
  const void* w13;       // packed by experts.py
  const void* w2;
  Dtype weight_dtype;
  const float* w13_scale;  // packed, or null
  const float* w2_scale;
  int64_t w13_scale_width;  // values of a block and group: 64, or 2
  int64_t w2_scale_width;
  const int32_t* w13_start;  // of int8 weights, by column: where the sum of biased activations begins
  const int32_t* w2_start;
  const float* weights;  // [T, K], or null where ids are words of pack_routing
  const void* ids;       // [T, K]
  Dtype ids_dtype;
  const int32_t* expert_map;  // [num_mapped] or null
  int64_t num_mapped;
  void* out;  // [T, H]
  Dtype out_dtype;
  Dtype act_dtype;
  int64_t num_tokens;
  int64_t top_k;
  int64_t num_experts;
  int64_t hidden;
  int64_t width;
  int64_t columns;  // inputs that share a scale
};

}  // namespace minimax_m2

// Returns the first slot t * K + k whose expert is out of range, or -1.
MINIMAX_M2_TILED_KERNEL(int64_t, experts, const ExpertsArgs&)

// The same for int8 weights, in vectors on every machine.
MINIMAX_M2_KERNEL(int64_t, experts_int8, const ExpertsArgs&)
