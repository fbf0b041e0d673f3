// Where a slot of the paged cache lies. Strides count elements; int64 throughout, a cache may exceed 2^31 elements.
#pragma once
#include "dtype.h"

namespace minimax_m2 {

struct CacheLayout {
  void* data;  // [pages, page, Hk, D], last dimension contiguous
  int64_t page_stride;
  int64_t slot_stride;
  int64_t head_stride;
};

struct CacheSlots {
  const int64_t* slots;  // [T], below 0: the token is not stored
  int64_t page;
  int64_t num_slots;
};

}  // namespace minimax_m2
