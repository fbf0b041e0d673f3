// Registers gdn_gating for the CPU.
#include "gdn_gating.h"

#include "argument_checks.h"

namespace minimax_m2 {
namespace {

bool is_parameter(const Tensor& x, const Tensor& a) {
  return (x.scalar_type() == ScalarType::Float || x.scalar_type() == a.scalar_type()) &&
         is_dense(x, x.scalar_type(), {a.size(1)});
}

// As schema/gdn_gating.py says.
bool accepts(const Tensor& a_log, const Tensor& a, const Tensor& b, const Tensor& dt_bias, const Tensor& g,
             const Tensor& beta) {
  if (!is_float(a) || !has_shape(a, {ANY, ANY}) || !has_rows(a)) return false;
  const ScalarType dtype = a.scalar_type();
  const int64_t num_tokens = a.size(0), num_heads = a.size(1);
  return b.scalar_type() == dtype && has_shape(b, {num_tokens, num_heads}) && has_rows(b) && is_parameter(a_log, a) &&
         is_parameter(dt_bias, a) && is_dense(g, ScalarType::Float, {num_tokens, num_heads}) &&
         is_dense(beta, dtype, {num_tokens, num_heads});
}

void gdn_gating(const Tensor& a_log, const Tensor& a, const Tensor& b, const Tensor& dt_bias, Tensor g, Tensor beta) {
  require(accepts(a_log, a, b, dt_bias, g, beta), "gdn_gating");
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
