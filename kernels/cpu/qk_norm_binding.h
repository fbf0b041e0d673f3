// Fills a QkNormArgs from tensors; shared by the bindings of qk_norm_rope and qk_norm_rope_cache.
#pragma once
#include "qk_norm_rope.h"
#include "rotation_binding.h"

namespace minimax_m2 {
namespace {

struct QkShape {
  int64_t num_heads, num_kv_heads, head_dim;
};

// As schema/qk_norm_rope.py says, the rotation apart.
[[maybe_unused]] bool accepts_norm(const Tensor& qkv, const std::optional<Tensor>& stats, const Tensor& q_weight,
                                   const Tensor& k_weight, const QkShape& shape, int64_t q_width, int64_t k_width,
                                   double eps) {
  constexpr int64_t MOST = 1 << 16, WIDEST = (int64_t{1} << 31) - 1;
  const auto [num_heads, num_kv_heads, head_dim] = shape;
  if (!within(num_heads, 1, MOST) || !within(num_kv_heads, 1, MOST) || !within(head_dim, 1, MOST)) return false;
  const ScalarType dtype = q_weight.scalar_type();
  return is_float(qkv) && has_shape(qkv, {ANY, (num_heads + 2 * num_kv_heads) * head_dim}) && has_rows(qkv) &&
         (!stats || is_dense(*stats, ScalarType::Float, {qkv.size(0), 2})) &&
         (dtype == ScalarType::Float || dtype == qkv.scalar_type()) &&
         is_dense(q_weight, dtype, {num_heads * head_dim}) && is_dense(k_weight, dtype, {num_kv_heads * head_dim}) &&
         within(q_width, 1, WIDEST) && within(k_width, 1, WIDEST) && eps >= 0.0;
}

QkNormArgs norm_args(const Tensor& qkv, const std::optional<Tensor>& stats, const Tensor& q_weight,
                     const Tensor& k_weight, const QkShape& shape, int64_t q_width, int64_t k_width, double eps) {
  return {.qkv = qkv.const_data_ptr(),
          .qkv_stride = qkv.stride(0),
          .dtype = dtype_of(qkv),
          .stats = data_or_null<float>(stats),
          .q_weight = q_weight.const_data_ptr(),
          .k_weight = k_weight.const_data_ptr(),
          .weight_dtype = dtype_of(q_weight),
          .q_width = static_cast<double>(q_width),
          .k_width = static_cast<double>(k_width),
          .eps = eps,
          .num_tokens = qkv.size(0),
          .num_heads = static_cast<int>(shape.num_heads),
          .num_kv_heads = static_cast<int>(shape.num_kv_heads),
          .head_dim = static_cast<int>(shape.head_dim)};
}

}  // namespace
}  // namespace minimax_m2
