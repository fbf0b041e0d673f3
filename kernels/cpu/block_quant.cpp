// Quantises rows to e4m3 in groups: a group is read twice, from memory and then from the first-level cache.
#include "block_quant.h"

#include <algorithm>
#include <type_traits>

#include "group_quant.h"
#include "token_loop.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

template <class T>
inline void quantise_rows(const BlockQuantArgs& args) {
  const int64_t groups = (args.hidden + args.group - 1) / args.group;
  for_tokens(args.num_tokens, args.hidden, [&](int64_t token) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t first = g * args.group;
      const int64_t count = std::min(args.group, args.hidden - first);
      const T* x = static_cast<const T*>(args.x) + token * args.x_stride + first;
      const auto value = [&](int64_t i, auto... n) { return load(x + i, n...); };
      const float exact = group_scale(count, LARGEST_E4M3, value);
      const float scale = args.power_of_two ? power_of_two_above(exact) : exact;
      args.scale[token * groups + g] = scale;
      quantise(count, scale, args.q + token * args.hidden + first, value);
    }
  });
}

}  // namespace

void block_quant(const BlockQuantArgs& args) {
  with_float(args.dtype, [&](auto* tag) { quantise_rows<std::remove_pointer_t<decltype(tag)>>(args); });
}

}  // namespace minimax_m2::MINIMAX_M2_ISA
