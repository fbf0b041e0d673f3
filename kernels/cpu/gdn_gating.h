// Arguments of the gdn_gating kernel. Strides count elements.
#pragma once
#include "dtype.h"

namespace minimax_m2 {

struct GdnGatingArgs {
  const void* a_log;  // [Hv]
  Dtype a_log_dtype;  // float32, or that of a
  const void* a;      // [T, Hv], last dimension contiguous
  int64_t a_stride;
  const void* b;  // [T, Hv], last dimension contiguous
  int64_t b_stride;
  const void* dt_bias;  // [Hv]
  Dtype dt_bias_dtype;  // float32, or that of a
  float* g;             // [T, Hv]
  void* beta;           // [T, Hv]
  Dtype dtype;          // of a and b
  Dtype beta_dtype;     // that, or float32
  int64_t num_tokens;
  int64_t num_heads;
};

}  // namespace minimax_m2

MINIMAX_M2_KERNEL(void, gdn_gating, const GdnGatingArgs&)
