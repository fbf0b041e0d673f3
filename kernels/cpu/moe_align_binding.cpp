// Registers moe_align for the CPU. Shapes and dtypes were checked by moe_align.py.
#include "moe_align.h"

#include "binding.h"

namespace minimax_m2 {
namespace {

void moe_align(const Tensor& ids, int64_t num_experts, int64_t block, std::optional<Tensor> expert_map,
               Tensor sorted_slots, Tensor block_experts, Tensor num_padded, Tensor counts) {
  const int64_t num_mapped = expert_map.has_value() ? expert_map->size(0) : 0, top_k = ids.size(1);
  const AlignArgs args{.ids = ids.const_data_ptr(),
                       .ids_dtype = dtype_of(ids),
                       .slots = ids.numel(),
                       .expert_map = data_or_null<int32_t>(expert_map),
                       .num_mapped = num_mapped,
                       .num_experts = num_experts,
                       .block = block,
                       .blocks = block_experts.size(0),
                       .sorted_slots = static_cast<int32_t*>(sorted_slots.mutable_data_ptr()),
                       .block_experts = static_cast<int32_t*>(block_experts.mutable_data_ptr()),
                       .num_padded = static_cast<int32_t*>(num_padded.mutable_data_ptr()),
                       .counts = static_cast<int32_t*>(counts.mutable_data_ptr())};
  const int64_t bad = launch(moe_align_table, args);
  if (bad < 0) return;
  const std::string slot = "[" + std::to_string(bad / top_k) + ", " + std::to_string(bad % top_k) + "]";
  const std::string range = "-1.." + std::to_string(num_experts - 1);
  if (expert_map.has_value()) {
    reject("ids at " + slot + " is outside -1.." + std::to_string(num_mapped - 1) + " or expert_map sends it outside " +
           range + ", num_experts=" + std::to_string(num_experts));
  }
  reject("ids at " + slot + " is outside " + range + ", num_experts=" + std::to_string(num_experts) +
         "; -1 means no expert, expert_map translates ids of other ranks");
}

}  // namespace
}  // namespace minimax_m2

STABLE_TORCH_LIBRARY_IMPL(minimax_m2, CPU, m) { m.impl("moe_align", TORCH_BOX(&minimax_m2::moe_align)); }
