// Arguments of qk_norm_rope and qk_sum_squares. Strides count elements.
#pragma once
#include "rotation.h"

namespace minimax_m2 {

struct QkNormArgs {
  const void* qkv;  // [T, (Hq + 2 * Hk) * D], last dimension contiguous
  int64_t qkv_stride;
  Dtype dtype;
  const float* stats;  // [T, 2] sums of squares over all ranks, contiguous; null: this rank is the only one
  const void* q_weight;
  const void* k_weight;
  Dtype weight_dtype;
  double q_width;
  double k_width;
  double eps;
  int64_t num_tokens;
  int num_heads;
  int num_kv_heads;
  int head_dim;
};

struct QkNormRopeArgs {
  QkNormArgs norm;
  RotationTable table;
  void* q;  // [T, Hq, D], contiguous
  void* k;  // [T, Hk, D], contiguous
  void* v;
};

struct QkSumSquaresArgs {
  const void* qkv;
  int64_t qkv_stride;
  Dtype dtype;
  float* stats;  // [T, 2]
  int64_t num_tokens;
  int64_t q_width;        // Hq * D
  int64_t counted_width;  // of k: counted heads * D
};

}  // namespace minimax_m2

// Returns the first token whose position is outside the table, or -1.
MINIMAX_M2_KERNEL(int64_t, qk_norm_rope, const QkNormRopeArgs&)
MINIMAX_M2_KERNEL(void, qk_sum_squares, const QkSumSquaresArgs&)
