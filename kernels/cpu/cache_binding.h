// Reads a cache's layout and slots from tensors; shared by the bindings of ops that write the cache.
#pragma once
#include "binding.h"
#include "cache_layout.h"

namespace minimax_m2 {
namespace {

CacheLayout layout_of(Tensor& cache) {
  return {.data = cache.mutable_data_ptr(),
          .page_stride = cache.stride(0),
          .slot_stride = cache.stride(1),
          .head_stride = cache.stride(2)};
}

CacheSlots slots_of(const Tensor& slots, const Tensor& cache) {
  return {.slots = static_cast<const int64_t*>(slots.const_data_ptr()),
          .page = cache.size(1),
          .num_slots = cache.size(0) * cache.size(1)};
}

[[noreturn]] void reject_slot(int64_t token, const Tensor& slots, const Tensor& cache) {
  const int64_t slot = static_cast<const int64_t*>(slots.const_data_ptr())[token];
  reject("slots[" + std::to_string(token) + "]=" + std::to_string(slot) + " is past the cache of " +
         std::to_string(cache.size(0)) + " pages of " + std::to_string(cache.size(1)) +
         "; -1 marks a token that is not stored");
}

}  // namespace
}  // namespace minimax_m2
