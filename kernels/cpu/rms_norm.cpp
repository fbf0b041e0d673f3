// RMSNorm: one pass over a row for its mean square, one that scales it while it is in the first-level cache.
#include "rms_norm.h"

#include <type_traits>

#include "row_vectors.h"
#include "token_loop.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

template <class T>
inline void normalise(const RmsNormArgs& args) {
  const auto* weight = static_cast<const T*>(args.weight);
  for_tokens(args.num_tokens, args.hidden, [&](int64_t token) {
    const T* x = static_cast<const T*>(args.x) + token * args.x_stride;
    T* y = static_cast<T*>(args.y) + token * args.hidden;
    const auto value = [&](int64_t i, auto... n) { return load(x + i, n...); };
    const Float scale = set1(inverse_rms(args.hidden, args.eps, value));
    for_vectors(args.hidden, [&](int64_t i, auto... n) {
      store(y + i, value(i, n...) * scale * load(weight + i, n...), n...);
    });
  });
}

}  // namespace

void rms_norm(const RmsNormArgs& args) {
  with_float(args.dtype, [&](auto* tag) { normalise<std::remove_pointer_t<decltype(tag)>>(args); });
}

}  // namespace minimax_m2::MINIMAX_M2_ISA
