// Registers rope for the CPU. Shapes and dtypes were checked by rope.py.
#include "rope.h"

#include "rotation_binding.h"

namespace minimax_m2 {
namespace {

RopeArgs::Heads heads_of(const Tensor& x, Tensor& out) {
  return {.x = x.const_data_ptr(),
          .token_stride = x.stride(0),
          .head_stride = x.stride(1),
          .out = out.mutable_data_ptr(),
          .count = static_cast<int>(x.size(1))};
}

void rope(const Tensor& q, const Tensor& k, const Tensor& cos_sin, const Tensor& positions, int64_t rotary_dim,
          Tensor q_out, Tensor k_out) {
  const RopeArgs args{.parts = {heads_of(q, q_out), heads_of(k, k_out)},
                      .dtype = dtype_of(q),
                      .table = rotation_table(cos_sin, positions, rotary_dim),
                      .num_tokens = q.size(0),
                      .head_dim = static_cast<int>(q.size(2))};
  const int64_t bad = launch(rope_table, args);
  if (bad >= 0) reject_position(bad, cos_sin);
}

}  // namespace
}  // namespace minimax_m2

STABLE_TORCH_LIBRARY_IMPL(minimax_m2, CPU, m) { m.impl("rope", TORCH_BOX(&minimax_m2::rope)); }
