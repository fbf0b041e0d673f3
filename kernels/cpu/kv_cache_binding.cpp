// Registers kv_cache for the CPU. Shapes and dtypes were checked by kv_cache.py.
#include "kv_cache.h"

#include "cache_binding.h"

namespace minimax_m2 {
namespace {

KvCacheArgs::Part part_of(const Tensor& x, Tensor& cache, const std::optional<Tensor>& scale) {
  return {.x = x.const_data_ptr(),
          .token_stride = x.stride(0),
          .head_stride = x.stride(1),
          .cache = layout_of(cache),
          .scaled = scale.has_value(),
          .scale = scale.has_value() ? *data_or_null<float>(scale) : 1.0f};
}

void kv_cache(const Tensor& k, const Tensor& v, Tensor k_cache, Tensor v_cache, const Tensor& slots,
              std::optional<Tensor> k_scale, std::optional<Tensor> v_scale) {
  const KvCacheArgs args{.parts = {part_of(k, k_cache, k_scale), part_of(v, v_cache, v_scale)},
                         .dtype = dtype_of(k),
                         .cache_dtype = dtype_of(k_cache),
                         .slots = slots_of(slots, k_cache),
                         .num_tokens = k.size(0),
                         .num_kv_heads = static_cast<int>(k.size(1)),
                         .head_dim = static_cast<int>(k.size(2))};
  const int64_t bad = launch(kv_cache_table, args);
  if (bad >= 0) reject_slot(bad, slots, k_cache);
}

}  // namespace
}  // namespace minimax_m2

STABLE_TORCH_LIBRARY_IMPL(minimax_m2, CPU, m) { m.impl("kv_cache", TORCH_BOX(&minimax_m2::kv_cache)); }
