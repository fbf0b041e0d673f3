// SwiGLU and quantisation: a group's values are gated once into a buffer on the stack, scaled, and rounded.
#include "swiglu_quant.h"

#include <algorithm>
#include <type_traits>

#include "group_quant.h"
#include "token_loop.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

// An exponential costs about as much as ten copied values.
constexpr int64_t EFFORT = 10;

template <class T, class Code>
inline void gate_and_quantise(const SwigluQuantArgs& args, float largest) {
  const int64_t groups = (args.width + args.group - 1) / args.group;
  for_tokens(args.num_tokens, EFFORT * args.width, [&](int64_t token) {
    alignas(64) float y[WIDEST_GROUP];
    const auto gated = [&](int64_t i, auto... n) { return load(y + i, n...); };
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t first = g * args.group;
      const int64_t count = std::min(args.group, args.width - first);
      const T* gate = static_cast<const T*>(args.gate_up) + token * args.gate_up_stride + first;
      const T* up = gate + args.width;
      for_vectors(count, [&](int64_t i, auto... n) {
        store(y + i, silu(load(gate + i, n...)) * load(up + i, n...), n...);
      });
      const float scale = group_scale(count, largest, gated);
      args.scale[token * groups + g] = scale;
      quantise(count, scale, static_cast<Code*>(args.q) + token * args.width + first, gated);
    }
  });
}

}  // namespace

void swiglu_quant(const SwigluQuantArgs& args) {
  with_float(args.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    if (args.q_dtype == Dtype::int8) return gate_and_quantise<T, int8_t>(args, LARGEST_INT8);
    gate_and_quantise<T, Float8>(args, LARGEST_E4M3);
  });
}

}  // namespace minimax_m2::MINIMAX_M2_ISA
