// Rotary embedding of q and k: one pass over each row, a token's cosines and sines widened once.
#include "rope.h"

#include <type_traits>

#include "rotate_head.h"
#include "token_loop.h"
#include "vector.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

template <class T>
inline void rotate_token(const RopeArgs& args, int64_t token) {
  float room[MAX_HEAD_DIM];
  const float* row = rotation_row(args.table, token, room);
  for (const auto& part : args.parts) {
    T* out = static_cast<T*>(part.out) + token * part.count * args.head_dim;
    for (int head = 0; head < part.count; ++head, out += args.head_dim) {
      const T* x = static_cast<const T*>(part.x) + token * part.token_stride + head * part.head_stride;
      rotate_head(row, args.table.rotary_dim, args.head_dim, out, [&](auto... at) { return load_at(x, at...); });
    }
  }
}

}  // namespace

int64_t rope(const RopeArgs& args) {
  const int64_t bad = first_outside(args.table, args.num_tokens);
  if (bad >= 0) return bad;
  const int64_t values = static_cast<int64_t>(args.parts[0].count + args.parts[1].count) * args.head_dim;
  with_float(args.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    for_tokens(args.num_tokens, values, [&](int64_t token) { rotate_token<T>(args, token); });
  });
  return -1;
}

}  // namespace minimax_m2::MINIMAX_M2_ISA
