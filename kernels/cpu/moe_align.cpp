// A counting sort in two passes over the ids. A pass is a chain of dependent counter updates: lanes would collide on
// one counter, so only filling the padding is vector work.
#include "moe_align.h"

#include <type_traits>
#include <vector>

#include "vector.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

// The local expert of a slot, -1 for none, -2 for an id out of range.
template <class Index>
inline int64_t expert_of(const AlignArgs& args, int64_t slot) {
  int64_t id = static_cast<const Index*>(args.ids)[slot];
  if (id == -1) return -1;
  if (id < 0 || id >= (args.expert_map ? args.num_mapped : args.num_experts)) return -2;
  if (args.expert_map) id = args.expert_map[id];
  return id < -1 || id >= args.num_experts ? -2 : id;
}

inline void fill(int32_t* to, int64_t count, int32_t value) {
  const Int lanes = set1_int(value);
  int64_t i = 0;
  for (; i + Float::N <= count; i += Float::N) store_int(to + i, lanes);
  for (; i < count; ++i) to[i] = value;
}

template <class Index>
inline int64_t align(const AlignArgs& args) {
  fill(args.counts, args.num_experts, 0);
  for (int64_t slot = 0; slot < args.slots; ++slot) {
    const int64_t e = expert_of<Index>(args, slot);
    if (e == -2) return slot;
    if (e >= 0) ++args.counts[e];
  }
  fill(args.sorted_slots, args.blocks * args.block, static_cast<int32_t>(args.slots));
  fill(args.block_experts, args.blocks, -1);
  std::vector<int64_t> next(args.num_experts);
  int64_t used = 0;
  for (int64_t e = 0; e < args.num_experts; ++e) {
    next[e] = used * args.block;
    const int64_t run = (args.counts[e] + args.block - 1) / args.block;
    fill(args.block_experts + used, run, static_cast<int32_t>(e));
    used += run;
  }
  *args.num_padded = static_cast<int32_t>(used * args.block);
  for (int64_t slot = 0; slot < args.slots; ++slot) {
    const int64_t e = expert_of<Index>(args, slot);
    if (e >= 0) args.sorted_slots[next[e]++] = static_cast<int32_t>(slot);
  }
  return -1;
}

}  // namespace

int64_t moe_align(const AlignArgs& args) {
  int64_t bad = -1;
  with_index(args.ids_dtype, [&](auto* tag) { bad = align<std::remove_pointer_t<decltype(tag)>>(args); });
  return bad;
}

}  // namespace minimax_m2::MINIMAX_M2_ISA
