// Registers qkvzba_split for the CPU.
#include "qkvzba_split.h"

#include "argument_checks.h"

namespace minimax_m2 {
namespace {

// As schema/qkvzba_split.py says.
bool accepts(const Tensor& qkvz, const Tensor& ba, int64_t num_k_heads, int64_t num_v_heads, int64_t head_k_dim,
             int64_t head_v_dim, const Tensor& qkv, const Tensor& z, const Tensor& b, const Tensor& a) {
  if (num_k_heads < 1 || num_v_heads < 1 || head_k_dim < 1 || head_v_dim < 1 || num_v_heads % num_k_heads) return false;
  const int64_t value = num_v_heads * head_v_dim, width = 2 * num_k_heads * head_k_dim + value;
  if (!is_float(qkvz) || !has_shape(qkvz, {ANY, width + value}) || !has_rows(qkvz)) return false;
  const ScalarType dtype = qkvz.scalar_type();
  const int64_t num_tokens = qkvz.size(0);
  return ba.scalar_type() == dtype && has_shape(ba, {num_tokens, 2 * num_v_heads}) && has_rows(ba) &&
         is_dense(qkv, dtype, {num_tokens, width}) && is_dense(z, dtype, {num_tokens, num_v_heads, head_v_dim}) &&
         is_dense(b, dtype, {num_tokens, num_v_heads}) && is_dense(a, dtype, {num_tokens, num_v_heads});
}

void qkvzba_split(const Tensor& qkvz, const Tensor& ba, int64_t num_k_heads, int64_t num_v_heads, int64_t head_k_dim,
                  int64_t head_v_dim, bool interleaved, Tensor qkv, Tensor z, Tensor b, Tensor a) {
  require(accepts(qkvz, ba, num_k_heads, num_v_heads, head_k_dim, head_v_dim, qkv, z, b, a), "qkvzba_split");
  const int64_t bytes = qkvz.element_size(), groups = interleaved ? num_k_heads : 1;
  launch(qkvzba_split_table, QkvzbaSplitArgs{.qkvz = static_cast<const char*>(qkvz.const_data_ptr()),
                                             .qkvz_stride_bytes = qkvz.stride(0) * bytes,
                                             .ba = static_cast<const char*>(ba.const_data_ptr()),
                                             .ba_stride_bytes = ba.stride(0) * bytes,
                                             .qkv = static_cast<char*>(qkv.mutable_data_ptr()),
                                             .z = static_cast<char*>(z.mutable_data_ptr()),
                                             .b = static_cast<char*>(b.mutable_data_ptr()),
                                             .a = static_cast<char*>(a.mutable_data_ptr()),
                                             .groups = groups,
                                             .key_bytes = num_k_heads * head_k_dim / groups * bytes,
                                             .value_bytes = num_v_heads * head_v_dim / groups * bytes,
                                             .gate_bytes = num_v_heads / groups * bytes,
                                             .num_tokens = qkvz.size(0)});
}

}  // namespace
}  // namespace minimax_m2

STABLE_TORCH_LIBRARY_IMPL(minimax_m2, CPU, m) { m.impl("qkvzba_split", TORCH_BOX(&minimax_m2::qkvzba_split)); }
