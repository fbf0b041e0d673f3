// Routing and the packed format of its result; the choice itself stands in expert_choice.h.
#include "routing.h"

#include <type_traits>

#include "expert_choice.h"

namespace minimax_m2::MINIMAX_M2_ISA {

int64_t routing(const RoutingArgs& args) {
  int64_t bad = -1;
  with_float(args.logits_dtype, [&](auto* logit) {
    with_index(args.ids_dtype, [&](auto* index) {
      bad = route<std::remove_pointer_t<decltype(logit)>, std::remove_pointer_t<decltype(index)>>(args);
    });
  });
  return bad;
}

int64_t pack_routing(const PackArgs& args) {
  int64_t bad = -1;
  with_index(args.ids_dtype, [&](auto* tag) {
    const auto* ids = static_cast<decltype(tag)>(args.ids);
    for (int64_t i = 0; i < args.count; ++i) {
      const int64_t local = ids[i] < args.expert_start ? -1 : ids[i] - args.expert_start;
      if (ids[i] < -1 || local > INT16_MAX) {
        bad = i;
        return;
      }
      BFloat16 weight;
      round_to(&weight, args.weights[i]);
      args.packed[i] = static_cast<int32_t>(static_cast<uint32_t>(local) << 16 | weight.bits);
    }
  });
  return bad;
}

int64_t unpack_routing(const PackArgs& args) {
  with_index(args.ids_dtype, [&](auto* tag) {
    using Index = std::remove_pointer_t<decltype(tag)>;
    auto* ids = static_cast<Index*>(args.ids);
    for (int64_t i = 0; i < args.count; ++i) {
      const int64_t local = args.packed[i] >> 16;
      ids[i] = static_cast<Index>(local < 0 ? -1 : local + args.expert_start);
      args.weights[i] = to_float(BFloat16{static_cast<uint16_t>(args.packed[i] & 0xffff)});
    }
  });
  return -1;
}

}  // namespace minimax_m2::MINIMAX_M2_ISA
