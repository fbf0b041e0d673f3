// Registers gdn_gating for the CPU. Shapes and dtypes were checked by gdn_gating.py.
#include "gdn_gating.h"

#include "binding.h"

namespace minimax_m2 {
namespace {

void gdn_gating(const Tensor& a_log, const Tensor& a, const Tensor& b, const Tensor& dt_bias, Tensor g, Tensor beta) {
  launch(gdn_gating_table, GdnGatingArgs{.a_log = a_log.const_data_ptr(),
                                         .a_log_dtype = dtype_of(a_log),
                                         .a = a.const_data_ptr(),
                                         .a_stride = a.stride(0),
                                         .b = b.const_data_ptr(),
                                         .b_stride = b.stride(0),
                                         .dt_bias = dt_bias.const_data_ptr(),
                                         .dt_bias_dtype = dtype_of(dt_bias),
                                         .g = static_cast<float*>(g.mutable_data_ptr()),
                                         .beta = beta.mutable_data_ptr(),
                                         .dtype = dtype_of(a),
                                         .num_tokens = a.size(0),
                                         .num_heads = a.size(1)});
}

}  // namespace
}  // namespace minimax_m2

STABLE_TORCH_LIBRARY_IMPL(minimax_m2, CPU, m) { m.impl("gdn_gating", TORCH_BOX(&minimax_m2::gdn_gating)); }
