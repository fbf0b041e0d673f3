// Blocks of experts' weights in the order in which threads take them, and the columns that come of them.
#pragma once
#include <omp.h>

#include <algorithm>
#include <type_traits>

#include "expert_slots.h"
#include "operand_rows.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

// Block b of an expert, at `index` among all experts' blocks; the one that its thread likely takes after it.
struct ExpertBlock {
  int64_t expert;
  int64_t b;
  int64_t index;
  int64_t next;
};

// Unit of stage 1: units are blocks of active experts, b of one expert, then of the next.
inline ExpertBlock gate_block(const Plan& plan, int64_t unit, int64_t blocks) {
  const int64_t last = static_cast<int64_t>(plan.active.size()) - 1;
  const int64_t expert = plan.active[unit / blocks], b = unit % blocks, index = expert * blocks + b;
  const int64_t next = b + 1 < blocks ? index + 1 : plan.active[std::min(last, unit / blocks + 1)] * blocks;
  return {expert, b, index, next};
}

// Block b of the i-th active expert in stage 2, which takes all experts' for one b.
inline ExpertBlock down_block(const Plan& plan, size_t i, int64_t b, int64_t blocks) {
  const int64_t expert = plan.active[i];
  // After the last expert's block the thread takes another column's, of the first.
  const bool more = i + 1 < plan.active.size();
  const int64_t next = more ? plan.active[i + 1] * blocks + b
                            : plan.active[0] * blocks + std::min(blocks - 1, b + omp_get_num_threads());
  return {expert, b, expert * blocks + b, next};
}

// Rounds all tokens' sums of a block's columns into the result.
inline void write_block(const ExpertsArgs& args, int64_t b, const float* sums) {
  with_float(args.out_dtype, [&](auto* tag) {
    using Out = std::remove_pointer_t<decltype(tag)>;
    Out* out = static_cast<Out*>(args.out) + b * COLUMNS;
    const int64_t real = std::min<int64_t>(COLUMNS, args.hidden - b * COLUMNS);
    for (int64_t t = 0; t < args.num_tokens; ++t) round_columns(sums + t * COLUMNS, out + t * args.hidden, real);
  });
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
