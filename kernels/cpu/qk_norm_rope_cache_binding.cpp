// Registers qk_norm_rope_cache for the CPU. Shapes and dtypes were checked by qk_norm_rope_cache.py.
#include "qk_norm_rope_cache.h"

#include "cache_binding.h"
#include "qk_norm_binding.h"

namespace minimax_m2 {
namespace {

void qk_norm_rope_cache(const Tensor& qkv, std::optional<Tensor> stats, const Tensor& q_weight, const Tensor& k_weight,
                        const Tensor& cos_sin, const Tensor& positions, Tensor k_cache, Tensor v_cache,
                        const Tensor& slots, int64_t num_heads, int64_t num_kv_heads, int64_t head_dim,
                        int64_t rotary_dim, int64_t q_width, int64_t k_width, double eps, Tensor q) {
  const QkShape shape{num_heads, num_kv_heads, head_dim};
  const Refused refused =
      launch(qk_norm_rope_cache_table,
             QkNormRopeCacheArgs{.norm = norm_args(qkv, stats, q_weight, k_weight, shape, q_width, k_width, eps),
                                 .table = rotation_table(cos_sin, positions, rotary_dim),
                                 .k_cache = layout_of(k_cache),
                                 .v_cache = layout_of(v_cache),
                                 .cache_dtype = dtype_of(k_cache),
                                 .slots = slots_of(slots, k_cache),
                                 .q = q.mutable_data_ptr()});
  if (refused.position >= 0) reject_position(refused.position, cos_sin);
  if (refused.slot >= 0) reject_slot(refused.slot, slots, k_cache);
}

}  // namespace
}  // namespace minimax_m2

STABLE_TORCH_LIBRARY_IMPL(minimax_m2, CPU, m) {
  m.impl("qk_norm_rope_cache", TORCH_BOX(&minimax_m2::qk_norm_rope_cache));
}
