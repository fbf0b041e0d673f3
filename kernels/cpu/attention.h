// Arguments of paged attention. Strides count elements.
#pragma once
#include "dtype.h"

namespace minimax_m2 {

struct PagedCache {
  const void* data;  // [pages, page, Hk, D], last dimension contiguous
  int64_t page_stride;
  int64_t slot_stride;
  int64_t head_stride;
};

struct AttentionArgs {
  const void* q;  // [T, Hq, D], last dimension contiguous
  int64_t q_token_stride;
  int64_t q_head_stride;
  Dtype dtype;  // of q and out
  PagedCache k;
  PagedCache v;
  Dtype cache_dtype;        // that of q, or e4m3
  const void* block_table;  // [B, max pages], last dimension contiguous
  int64_t table_stride;
  Dtype table_dtype;
  const int64_t* seq_lens;     // [B]
  const int64_t* query_start;  // [B + 1]
  void* out;                   // [T, Hq, D]
  int64_t num_tokens;
  int64_t num_sequences;
  int64_t num_pages;
  int64_t page;
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  float score_factor;  // the softmax scale times that of the keys
  double value_factor;
};

}  // namespace minimax_m2

// Returns the first sequence that names a page outside the cache, or -1.
MINIMAX_M2_KERNEL(int64_t, attention, const AttentionArgs&)
