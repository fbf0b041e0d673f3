// Residual addition and RMSNorm. The sum is formed twice, from the first-level cache the second time, so that the
// statistics see it unrounded without a scratch row. Every value is read before its place is written: outputs may be inputs.
#include "add_rms_norm.h"

#include <type_traits>

#include "row_vectors.h"
#include "token_loop.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

template <class T>
inline void add_and_normalise(const AddRmsNormArgs& args) {
  const auto* weight = static_cast<const T*>(args.weight);
  for_tokens(args.num_tokens, args.hidden, [&](int64_t token) {
    const T* x = static_cast<const T*>(args.x) + token * args.x_stride;
    const T* residual = static_cast<const T*>(args.residual) + token * args.residual_stride;
    T* y = static_cast<T*>(args.y) + token * args.hidden;
    T* stored = static_cast<T*>(args.sum) + token * args.hidden;
    const auto sum = [&](int64_t i, auto... n) { return load(x + i, n...) + load(residual + i, n...); };
    const Float scale = set1(inverse_rms(args.hidden, args.eps, sum));
    for_vectors(args.hidden, [&](int64_t i, auto... n) {
      const Float value = sum(i, n...);
      store(stored + i, value, n...);
      store(y + i, value * scale * load(weight + i, n...), n...);
    });
  });
}

}  // namespace

void add_rms_norm(const AddRmsNormArgs& args) {
  with_float(args.dtype, [&](auto* tag) { add_and_normalise<std::remove_pointer_t<decltype(tag)>>(args); });
}

}  // namespace minimax_m2::MINIMAX_M2_ISA
