// Registers qk_norm_rope and qk_sum_squares for the CPU. The latter's arguments were checked by qk_norm_rope.py.
#include "qk_norm_rope.h"

#include "qk_norm_binding.h"

namespace minimax_m2 {
namespace {

void qk_norm_rope(const Tensor& qkv, std::optional<Tensor> stats, const Tensor& q_weight, const Tensor& k_weight,
                  const Tensor& cos_sin, const Tensor& positions, int64_t num_heads, int64_t num_kv_heads,
                  int64_t head_dim, int64_t rotary_dim, int64_t q_width, int64_t k_width, double eps, Tensor q,
                  Tensor k, Tensor v) {
  const QkShape shape{num_heads, num_kv_heads, head_dim};
  const int64_t num_tokens = positions.numel();
  const ScalarType dtype = qkv.scalar_type();
  require(accepts_norm(qkv, stats, q_weight, k_weight, shape, q_width, k_width, eps) && qkv.size(0) == num_tokens &&
              accepts_rotation(cos_sin, positions, rotary_dim, head_dim, num_tokens) &&
              is_dense(q, dtype, {num_tokens, num_heads, head_dim}) &&
              is_dense(k, dtype, {num_tokens, num_kv_heads, head_dim}) &&
              is_dense(v, dtype, {num_tokens, num_kv_heads, head_dim}),
          "qk_norm_rope");
  const int64_t bad = launch(
      qk_norm_rope_table, QkNormRopeArgs{.norm = norm_args(qkv, stats, q_weight, k_weight, shape, q_width, k_width, eps),
                                         .table = rotation_table(cos_sin, positions, rotary_dim),
                                         .q = q.mutable_data_ptr(),
                                         .k = k.mutable_data_ptr(),
                                         .v = v.mutable_data_ptr()});
  if (bad >= 0) reject_position(bad, cos_sin);
}

void qk_sum_squares(const Tensor& qkv, int64_t num_heads, int64_t head_dim, int64_t counted_kv_heads, Tensor stats) {
  launch(qk_sum_squares_table, QkSumSquaresArgs{.qkv = qkv.const_data_ptr(),
                                                .qkv_stride = qkv.stride(0),
                                                .dtype = dtype_of(qkv),
                                                .stats = static_cast<float*>(stats.mutable_data_ptr()),
                                                .num_tokens = qkv.size(0),
                                                .q_width = num_heads * head_dim,
                                                .counted_width = counted_kv_heads * head_dim});
}

}  // namespace
}  // namespace minimax_m2

STABLE_TORCH_LIBRARY_IMPL(minimax_m2, CPU, m) {
  m.impl("qk_norm_rope", TORCH_BOX(&minimax_m2::qk_norm_rope));
  m.impl("qk_sum_squares", TORCH_BOX(&minimax_m2::qk_sum_squares));
}
