// Registers experts for the CPU. Shapes and dtypes were checked by experts.py.
#include "experts.h"

#include "binding.h"
#include "dispatch.h"
#include "node_shares_binding.h"

#include <vector>

namespace minimax_m2 {
namespace {

// Null for weights without scales.
const float* scales_or_null(const Tensor& scales) {
  return scales.numel() > 0 ? static_cast<const float*>(scales.const_data_ptr()) : nullptr;
}

void experts(const Tensor& x, std::vector<Tensor> packed, std::optional<Tensor> weights, const Tensor& ids,
             std::optional<Tensor> expert_map, std::optional<Tensor> x_scale, Tensor out) {
  const Tensor &w13 = packed[0], &extent = packed[4];
  const int64_t num_experts = w13.size(0), top_k = ids.size(1);
  const int64_t num_mapped = expert_map.has_value() ? expert_map->size(0) : 0;
  const ExpertsArgs args{.x = x.const_data_ptr(),
                         .x_stride = x.stride(0),
                         .x_dtype = dtype_of(x),
                         .x_scale = data_or_null<float>(x_scale),
                         .w13 = w13.const_data_ptr(),
                         .w2 = packed[1].const_data_ptr(),
                         .weight_dtype = dtype_of(w13),
                         .w13_scale = scales_or_null(packed[2]),
                         .w2_scale = scales_or_null(packed[3]),
                         .w13_scale_width = packed[2].size(-1),
                         .w2_scale_width = packed[3].size(-1),
                         .w13_start = static_cast<const int32_t*>(packed[5].const_data_ptr()),
                         .w2_start = static_cast<const int32_t*>(packed[6].const_data_ptr()),
                         .weights = data_or_null<float>(weights),
                         .ids = ids.const_data_ptr(),
                         .ids_dtype = dtype_of(ids),
                         .expert_map = data_or_null<int32_t>(expert_map),
                         .num_mapped = num_mapped,
                         .out = out.mutable_data_ptr(),
                         .out_dtype = dtype_of(out),
                         .act_dtype = x_scale.has_value() ? dtype_of(out) : dtype_of(x),
                         .num_tokens = x.size(0),
                         .top_k = top_k,
                         .num_experts = num_experts,
                         .hidden = extent.size(1),
                         .width = extent.size(2),
                         .columns = extent.size(3)};
  const bool quantises = quantises_activations(args.weight_dtype);
  const int64_t bad = quantises ? launch(experts_int8_table, args) : launch(experts_table, args);
  if (bad < 0) return;
  const std::string slot = "[" + std::to_string(bad / top_k) + ", " + std::to_string(bad % top_k) + "]";
  if (expert_map.has_value()) {
    reject("ids at " + slot + " is outside -1.." + std::to_string(num_mapped - 1) +
           " or expert_map sends it outside -1.." + std::to_string(num_experts - 1) + ", the packed experts");
  }
  reject("ids at " + slot + " is outside -1.." + std::to_string(num_experts - 1) +
         ", the packed experts; -1 means no expert, expert_map translates ids of other ranks");
}

}  // namespace
}  // namespace minimax_m2

STABLE_TORCH_LIBRARY_IMPL(minimax_m2, CPU, m) { m.impl("experts", TORCH_BOX(&minimax_m2::experts)); }
