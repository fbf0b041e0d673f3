// Arguments of the kv_cache kernel. Strides count elements.
#pragma once
#include "cache_layout.h"

namespace minimax_m2 {

struct KvCacheArgs {
  struct Part {
    const void* x;  // [T, Hk, D], last dimension contiguous
    int64_t token_stride;
    int64_t head_stride;
    CacheLayout cache;
    bool scaled;
    float scale;
  } parts[2];  // k, v
  Dtype dtype;
  Dtype cache_dtype;
  CacheSlots slots;
  int64_t num_tokens;
  int num_kv_heads;
  int head_dim;
};

}  // namespace minimax_m2

// Returns the first token whose slot is past the cache, or -1.
MINIMAX_M2_KERNEL(int64_t, kv_cache, const KvCacheArgs&)
