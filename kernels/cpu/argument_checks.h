// What schema/<op>.py checks and explains, as tests of a few loads each, for bindings that are called without it. All
// tensors live on the CPU here: the dispatcher saw to that.
#pragma once
#include <initializer_list>

#include "binding.h"

namespace minimax_m2 {
namespace {

constexpr int64_t ANY = -1;  // matches every size

inline bool has_shape(const Tensor& x, std::initializer_list<int64_t> sizes) {
  if (x.dim() != static_cast<int64_t>(sizes.size())) return false;
  int64_t at = 0;
  for (const int64_t size : sizes)
    if (x.size(at++) != size && size != ANY) return false;
  return true;
}
inline bool has_rows(const Tensor& x) { return x.stride(-1) == 1 || x.size(-1) <= 1 || x.numel() == 0; }
inline bool is_dense(const Tensor& x, ScalarType dtype, std::initializer_list<int64_t> sizes) {
  return x.scalar_type() == dtype && has_shape(x, sizes) && x.is_contiguous();
}
inline bool is_float(const Tensor& x) {
  const ScalarType dtype = x.scalar_type();
  return dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
}
inline bool is_index(const Tensor& x) {
  return x.scalar_type() == ScalarType::Int || x.scalar_type() == ScalarType::Long;
}
inline bool within(int64_t value, int64_t low, int64_t high) { return low <= value && value <= high; }

// The wrapper asks the schema's check for the reason; a compiled graph, which has no wrapper, shows this.
inline void require(bool accepted, const char* op) {
  if (!accepted) reject(std::string(op) + " refuses the shape, dtype or strides of an argument; called eagerly it says which");
}

}  // namespace
}  // namespace minimax_m2
