// Arguments of the gated delta rule. Strides count elements.
#pragma once
#include "dtype.h"

namespace minimax_m2 {

constexpr int MAX_HEAD_DIM = 512;  // Dk

struct GatedDeltaRuleArgs {
  struct Heads {
    const void* data;  // [T, heads, width], last dimension contiguous
    int64_t token_stride;
    int64_t head_stride;
  } q, k, v;
  Dtype dtype;     // of q, k, v and o
  const float* g;  // [T, Hv], last dimension contiguous
  int64_t g_stride;
  const void* beta;  // [T, Hv], last dimension contiguous
  int64_t beta_stride;
  Dtype beta_dtype;  // float32, or that of q
  float* state;      // [slots, Hv, Dk, Dv], each head dense
  int64_t slot_stride;
  int64_t state_head_stride;
  const int64_t* state_index;  // [B], below 0: no state
  const int64_t* query_start;  // [B + 1]
  void* o;                     // [T, Hv, Dv]
  int64_t num_tokens;
  int64_t num_sequences;
  int64_t num_k_heads;
  int64_t num_v_heads;
  int64_t head_k_dim;
  int64_t head_v_dim;
  float scale;
  bool l2norm;
};

}  // namespace minimax_m2

MINIMAX_M2_KERNEL(void, gated_delta_rule, const GatedDeltaRuleArgs&)
