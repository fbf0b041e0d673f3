// Arguments of the moe_align kernel.
#pragma once
#include "dtype.h"

namespace minimax_m2 {

struct AlignArgs {
  const void* ids;  // [slots]
  Dtype ids_dtype;
  int64_t slots;
  const int32_t* expert_map;  // [num_mapped] or null
  int64_t num_mapped;
  int64_t num_experts;
  int64_t block;
  int64_t blocks;
  int32_t* sorted_slots;   // [blocks * block]
  int32_t* block_experts;  // [blocks]
  int32_t* num_padded;     // [1]
  int32_t* counts;         // [num_experts]
};

}  // namespace minimax_m2

// Returns the first slot whose expert is out of range, or -1.
MINIMAX_M2_KERNEL(int64_t, moe_align, const AlignArgs&)
