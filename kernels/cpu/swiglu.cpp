// SwiGLU in one pass: two loads, one exponential, one division and one store a vector.
#include "swiglu.h"

#include <type_traits>

#include "row_vectors.h"
#include "token_loop.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

// An exponential costs about as much as ten copied values.
constexpr int64_t EFFORT = 10;

template <class T>
inline void gate(const SwigluArgs& args) {
  for_tokens(args.num_tokens, EFFORT * args.width, [&](int64_t token) {
    const T* gate = static_cast<const T*>(args.gate_up) + token * args.gate_up_stride;
    const T* up = gate + args.width;
    T* y = static_cast<T*>(args.y) + token * args.width;
    for_vectors(args.width, [&](int64_t i, auto... n) {
      store(y + i, silu(load(gate + i, n...)) * load(up + i, n...), n...);
    });
  });
}

}  // namespace

void swiglu(const SwigluArgs& args) {
  with_float(args.dtype, [&](auto* tag) { gate<std::remove_pointer_t<decltype(tag)>>(args); });
}

}  // namespace minimax_m2::MINIMAX_M2_ISA
