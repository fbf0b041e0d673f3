// Registers qkvzba_split for the CPU. Shapes and dtypes were checked by qkvzba_split.py.
#include "qkvzba_split.h"

#include "binding.h"

namespace minimax_m2 {
namespace {

void qkvzba_split(const Tensor& qkvz, const Tensor& ba, int64_t num_k_heads, int64_t num_v_heads, int64_t head_k_dim,
                  int64_t head_v_dim, bool interleaved, Tensor qkv, Tensor z, Tensor b, Tensor a) {
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
