// Fills a RotationTable from tensors; shared by the bindings of ops that rotate.
#pragma once
#include "argument_checks.h"
#include "rotation.h"

namespace minimax_m2 {
namespace {

RotationTable rotation_table(const Tensor& cos_sin, const Tensor& positions, int64_t rotary_dim) {
  return {.cos_sin = cos_sin.const_data_ptr(),
          .stride = cos_sin.stride(0),
          .dtype = dtype_of(cos_sin),
          .num_positions = cos_sin.size(0),
          .positions = positions.const_data_ptr(),
          .positions_dtype = dtype_of(positions),
          .rotary_dim = static_cast<int>(rotary_dim)};
}

// As schema/rope.py says of a table and the positions to look up in it.
[[maybe_unused]] bool accepts_rotation(const Tensor& cos_sin, const Tensor& positions, int64_t rotary_dim,
                                       int64_t head_dim, int64_t num_tokens) {
  return within(head_dim, 1, 512) && within(rotary_dim, 0, head_dim) && rotary_dim % 2 == 0 && is_float(cos_sin) &&
         has_shape(cos_sin, {ANY, rotary_dim}) && has_rows(cos_sin) && is_index(positions) &&
         is_dense(positions, positions.scalar_type(), {num_tokens});
}

[[noreturn]] void reject_position(int64_t token, const Tensor& cos_sin) {
  reject("positions[" + std::to_string(token) + "] is outside 0.." + std::to_string(cos_sin.size(0) - 1) +
         ", the rows of cos_sin; tabulate more positions");
}

}  // namespace
}  // namespace minimax_m2
