// The slots (token, choice) of a call of experts, sorted by expert.
#pragma once
#include <type_traits>
#include <vector>

#include "dispatch.h"
#include "experts.h"
#include "scalar.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

constexpr int GATES = 32;  // gate columns in a block of w13, beside as many of up

// Slots that have an expert, sorted by expert, tokens rising.
struct Plan {
  std::vector<int64_t> first;    // [E + 1], start of each expert's slots
  std::vector<int32_t> active;   // experts that have slots
  std::vector<int32_t> token;    // by sorted slot
  std::vector<float> weight;
};

// The local expert of a slot, -1 for none, -2 for an id out of range.
template <class Index>
inline int64_t expert_of(const ExpertsArgs& args, int64_t slot) {
  int64_t id = static_cast<const Index*>(args.ids)[slot];
  if (args.weights == nullptr) id = id < 0 ? -1 : id >> 16;
  if (id == -1) return -1;
  const int64_t known = args.expert_map ? args.num_mapped : args.num_experts;
  if (id < 0 || id >= known) return -2;
  if (args.expert_map) id = args.expert_map[id];
  return id < -1 || id >= args.num_experts ? -2 : id;
}

inline float weight_of(const ExpertsArgs& args, int64_t slot) {
  if (args.weights) return args.weights[slot];
  return to_float(BFloat16{static_cast<uint16_t>(static_cast<const int32_t*>(args.ids)[slot] & 0xffff)});
}

// Counting sort; returns the first slot whose id is out of range, or -1.
template <class Index>
inline int64_t sort_slots_of(const ExpertsArgs& args, Plan& plan) {
  const int64_t slots = args.num_tokens * args.top_k;
  plan.first.assign(args.num_experts + 1, 0);
  for (int64_t slot = 0; slot < slots; ++slot) {
    const int64_t e = expert_of<Index>(args, slot);
    if (e == -2) return slot;
    if (e >= 0) ++plan.first[e + 1];
  }
  for (int64_t e = 0; e < args.num_experts; ++e) {
    if (plan.first[e + 1]) plan.active.push_back(static_cast<int32_t>(e));
    plan.first[e + 1] += plan.first[e];
  }
  plan.token.resize(plan.first.back());
  plan.weight.resize(plan.first.back());
  std::vector<int64_t> next(plan.first.begin(), plan.first.end() - 1);
  for (int64_t slot = 0; slot < slots; ++slot) {
    const int64_t e = expert_of<Index>(args, slot);
    if (e < 0) continue;
    const int64_t place = next[e]++;
    plan.token[place] = static_cast<int32_t>(slot / args.top_k);
    plan.weight[place] = weight_of(args, slot);
  }
  return -1;
}

inline int64_t sort_slots(const ExpertsArgs& args, Plan& plan) {
  int64_t bad = -1;
  with_index(args.ids_dtype, [&](auto* tag) { bad = sort_slots_of<std::remove_pointer_t<decltype(tag)>>(args, plan); });
  return bad;
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
