// What every <op>_binding.cpp shares: the stable-ABI headers, the ISA switch and tensor-to-pointer conversions.
// Python binds `isa_index` at load (extension.py); a launch reads that one int.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "dtype.h"

namespace minimax_m2 {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const int* isa_index = nullptr;

// Picks the variant in force:  launch(routing_table, args);
template <class Result, class... Parameters, size_t N, class... Args>
Result launch(Result (*const (&table)[N])(Parameters...), const Args&... args) {
  return table[*isa_index](args...);
}

// What only the data knows; Python sees a ValueError.
[[noreturn]] inline void reject(const std::string& message) { throw std::invalid_argument(message); }

[[maybe_unused]] Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Dtype::float32;
    case ScalarType::BFloat16: return Dtype::bfloat16;
    case ScalarType::Half: return Dtype::float16;
    case ScalarType::Float8_e4m3fn: return Dtype::float8_e4m3;
    case ScalarType::Char: return Dtype::int8;
    case ScalarType::Int: return Dtype::int32;
    case ScalarType::Long: return Dtype::int64;
    default: reject("dtype has no CPU kernel; the wrapper in kernels/cpu checks this first");
  }
}

// Null for an absent optional tensor.
template <class T>
const T* data_or_null(const std::optional<Tensor>& x) {
  return x.has_value() ? static_cast<const T*>(x->const_data_ptr()) : nullptr;
}

}  // namespace
}  // namespace minimax_m2

extern "C" __attribute__((visibility("default"))) void minimax_m2_bind_isa(const int* index) {
  minimax_m2::isa_index = index;
}
