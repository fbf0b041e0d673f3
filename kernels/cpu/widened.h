// A tensor of a few positions or lengths as int64, so that kernels see one type.
#pragma once
#include <vector>

#include "binding.h"

namespace minimax_m2 {
namespace {

inline std::vector<int64_t> widened(const Tensor& x) {
  std::vector<int64_t> out(static_cast<size_t>(x.numel()));
  with_index(dtype_of(x), [&](auto* tag) {
    const auto* p = static_cast<decltype(tag)>(x.data_ptr());
    for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<int64_t>(p[i]);
  });
  return out;
}

}  // namespace
}  // namespace minimax_m2
