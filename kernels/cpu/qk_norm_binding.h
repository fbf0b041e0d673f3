// Fills a QkNormArgs from tensors; shared by the bindings of qk_norm_rope and qk_norm_rope_cache.
#pragma once
#include "qk_norm_rope.h"
#include "rotation_binding.h"

namespace minimax_m2 {
namespace {

struct QkShape {
  int64_t num_heads, num_kv_heads, head_dim;
};

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
