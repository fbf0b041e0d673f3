// Residual addition, RMSNorm and quantisation. The normalised row stays in float32 and is formed anew wherever it is
// needed: three cached reads cost less than a scratch row. The new residual may overwrite the old one.
#include "add_rms_norm_quant.h"

#include <algorithm>
#include <type_traits>

#include "group_quant.h"
#include "token_loop.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

template <class T>
inline void normalise_and_quantise(const AddRmsNormQuantArgs& args) {
  const auto* weight = static_cast<const T*>(args.weight);
  const int64_t groups = (args.hidden + args.group - 1) / args.group;
  for_tokens(args.num_tokens, args.hidden, [&](int64_t token) {
    const T* x = static_cast<const T*>(args.x) + token * args.x_stride;
    const T* residual = static_cast<const T*>(args.residual) + token * args.residual_stride;
    T* stored = static_cast<T*>(args.sum) + token * args.hidden;
    const auto sum = [&](int64_t i, auto... n) { return load(x + i, n...) + load(residual + i, n...); };
    const Float rstd = set1(inverse_rms(args.hidden, args.eps, sum));
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t first = g * args.group;
      const int64_t count = std::min(args.group, args.hidden - first);
      const auto normalised = [&](int64_t i, auto... n) {
        return sum(first + i, n...) * rstd * load(weight + first + i, n...);
      };
      const float scale = group_scale(count, LARGEST_E4M3, normalised);
      args.scale[token * groups + g] = scale;
      quantise(count, scale, args.q + token * args.hidden + first, normalised);
      for_vectors(count, [&](int64_t i, auto... n) { store(stored + first + i, sum(first + i, n...), n...); });
    }
  });
}

}  // namespace

void add_rms_norm_quant(const AddRmsNormQuantArgs& args) {
  with_float(args.dtype, [&](auto* tag) { normalise_and_quantise<std::remove_pointer_t<decltype(tag)>>(args); });
}

}  // namespace minimax_m2::MINIMAX_M2_ISA
