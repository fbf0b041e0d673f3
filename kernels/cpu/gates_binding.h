// What gdn_gating and gdn_update check and take of the gates' tensors.
#pragma once
#include "argument_checks.h"
#include "gdn_gating.h"

namespace minimax_m2 {
namespace {

inline bool is_parameter(const Tensor& x, const Tensor& a) {
  return (x.scalar_type() == ScalarType::Float || x.scalar_type() == a.scalar_type()) &&
         is_dense(x, x.scalar_type(), {a.size(1)});
}

// As schema/gdn_gating.py says.
inline bool accepts_gates(const Tensor& a_log, const Tensor& a, const Tensor& b, const Tensor& dt_bias) {
  if (!is_float(a) || !has_shape(a, {ANY, ANY}) || !has_rows(a)) return false;
  return b.scalar_type() == a.scalar_type() && has_shape(b, {a.size(0), a.size(1)}) && has_rows(b) &&
         is_parameter(a_log, a) && is_parameter(dt_bias, a);
}

// All but the results.
inline GdnGatingArgs gates_args(const Tensor& a_log, const Tensor& a, const Tensor& b, const Tensor& dt_bias) {
  return {.a_log = a_log.const_data_ptr(),
          .a_log_dtype = dtype_of(a_log),
          .a = a.const_data_ptr(),
          .a_stride = a.stride(0),
          .b = b.const_data_ptr(),
          .b_stride = b.stride(0),
          .dt_bias = dt_bias.const_data_ptr(),
          .dt_bias_dtype = dtype_of(dt_bias),
          .g = nullptr,
          .beta = nullptr,
          .dtype = dtype_of(a),
          .beta_dtype = dtype_of(a),
          .num_tokens = a.size(0),
          .num_heads = a.size(1)};
}

}  // namespace
}  // namespace minimax_m2
