// Arguments of qk_norm_rope_cache. Strides count elements.
#pragma once
#include "cache_layout.h"
#include "qk_norm_rope.h"

namespace minimax_m2 {

struct QkNormRopeCacheArgs {
  QkNormArgs norm;
  RotationTable table;
  CacheLayout k_cache;
  CacheLayout v_cache;
  Dtype cache_dtype;
  CacheSlots slots;
  void* q;  // [T, Hq, D], contiguous
};

struct Refused {
  int64_t position;  // first token whose position is outside the table, or -1
  int64_t slot;      // first token whose slot is past the cache, or -1
};

}  // namespace minimax_m2

// Where it refuses, nothing was written.
MINIMAX_M2_KERNEL(Refused, qk_norm_rope_cache, const QkNormRopeCacheArgs&)
