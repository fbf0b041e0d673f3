// Gates of a gated delta net: the decay's factor once a call, then two exponentials, two divisions a vector.
#pragma once
#include <type_traits>
#include <vector>

#include "gdn_gating.h"
#include "row_vectors.h"
#include "softplus.h"
#include "token_loop.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

// Two exponentials and two divisions cost about as much as this many copied values.
constexpr int64_t GATES_EFFORT = 20;

inline std::vector<float> widened(const void* x, Dtype dtype, int64_t count) {
  std::vector<float> wide(count);
  with_float(dtype, [&](auto* tag) {
    const auto* from = static_cast<const std::remove_pointer_t<decltype(tag)>*>(x);
    for_vectors(count, [&](int64_t i, auto... n) { store(wide.data() + i, load(from + i, n...), n...); });
  });
  return wide;
}

template <class T, class Beta>
inline void gate_tokens(const GdnGatingArgs& args, const float* rate, const float* bias, Beta* betas) {
  const int64_t heads = args.num_heads;
  for_tokens(args.num_tokens, GATES_EFFORT * heads, [&](int64_t token) {
    const T* a = static_cast<const T*>(args.a) + token * args.a_stride;
    const T* b = static_cast<const T*>(args.b) + token * args.b_stride;
    float* g = args.g + token * heads;
    Beta* beta = betas + token * heads;
    for_vectors(heads, [&](int64_t h, auto... n) {
      store(g + h, neg(load(rate + h, n...)) * softplus(load(a + h, n...) + load(bias + h, n...)), n...);
      store(beta + h, sigmoid(load(b + h, n...)), n...);
    });
  });
}

inline void gate(const GdnGatingArgs& args) {
  std::vector<float> rate = widened(args.a_log, args.a_log_dtype, args.num_heads);
  for_vectors(args.num_heads, [&](int64_t h, auto... n) { store(rate.data() + h, exp(load(rate.data() + h, n...)), n...); });
  const std::vector<float> bias = widened(args.dt_bias, args.dt_bias_dtype, args.num_heads);
  with_float(args.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    if (args.beta_dtype == args.dtype) {
      gate_tokens<T>(args, rate.data(), bias.data(), static_cast<T*>(args.beta));
    } else {
      gate_tokens<T>(args, rate.data(), bias.data(), static_cast<float*>(args.beta));
    }
  });
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
