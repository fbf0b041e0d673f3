// A mixture's experts in two stages. Slots (token, choice) are sorted by expert; stage 1 runs over (active expert, 32
// columns of gate and up) and writes silu(gate) * up per slot; stage 2 runs over 64 columns of the result and adds the
// experts in rising order into sums of its own. No thread shares a sum, so threads change no bit.
#pragma once
#include <omp.h>

#include "expert_blocks.h"
#include "node_shares.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

// silu(gate) * up in the model's dtype, kept in the operand's.
inline void store_act(BFloat16* p, Float v, Dtype) { store(p, v); }
inline void store_act(float* p, Float v, Dtype dtype) {
  if (dtype == Dtype::float16) {
    Half narrow[Float::N];
    store(narrow, v);
    v = load(narrow);
  }
  store(p, v);
}

// Products brings the rows of x and multiplies: VectorProducts in experts.cpp, TileProducts in experts_amx.cpp.
template <class Products>
class Mixture {
  using Operand = typename Products::Operand;
  using Stored = typename Products::Stored;

 public:
  Mixture(const ExpertsArgs& args, const Plan& plan)
      : args_(args), plan_(plan), x_(args, plan) {
    const int64_t slots = static_cast<int64_t>(plan.token.size());
    act_ = buffer<Operand>((slots + Products::SPARE_ROWS) * act_stride_);
    parallel_ = !serial_products(slots * args.hidden * args.width);
  }

  void run() {
    const int64_t active = static_cast<int64_t>(plan_.active.size());
    NodeLoop gates(active, blocks13_), downs(1, blocks2_);
#pragma omp parallel if (parallel_)
    {
      [[maybe_unused]] const typename Products::Registers registers;
      const Buffer<Operand> scratch = buffer<Operand>(std::is_same_v<Stored, Float8> ? widest_slab() * COLUMNS : 0);
      const Buffer<float> total = buffer<float>(CHUNK * COLUMNS), sums = buffer<float>(args_.num_tokens * COLUMNS);
#pragma omp for schedule(static)
      for (int64_t i = 0; i < x_.num_copies(); ++i) x_.copy(i);
      gates.run(run_of(active * blocks13_, omp_get_num_threads()), [&](int64_t i, int64_t b, int64_t) {
        gate_and_up(i * blocks13_ + b, scratch.get(), total.get());
      });
#pragma omp barrier
      downs.run(1, [&](int64_t, int64_t b, int64_t) { down_and_sum(b, scratch.get(), total.get(), sums.get()); });
    }
  }

 private:
  int64_t widest_slab() const {
    return even(std::min(slab_of(args_.columns), std::max(args_.hidden, args_.width)));
  }

  // Block `index`, after which the thread likely takes block `next`.
  Block<Stored> block(const void* values, const float* scale, int64_t scale_width, int64_t index, int64_t next,
                      int64_t inputs, bool scaled) const {
    const int64_t padded = std::is_same_v<Stored, BFloat16> || std::is_same_v<Stored, Float8> ? even(inputs) : inputs;
    const int64_t groups = divided_up(inputs, args_.columns);
    const Stored* first = static_cast<const Stored*>(values);
    return {.values = first + index * padded * COLUMNS,
            .scale = scale ? scale + index * groups * scale_width : nullptr,
            .scale_width = scale_width,
            .inputs = inputs,
            .group = scaled ? args_.columns : SLAB,
            .next = first + next * padded * COLUMNS};
  }

  void gate_and_up(int64_t unit, Operand* scratch, float* total) {
    const auto [expert, b, index, next] = gate_block(plan_, unit, blocks13_);
    const int64_t first = plan_.first[expert], groups = divided_up(args_.hidden, args_.columns);
    const int32_t* token = plan_.token.data() + first;
    const auto row = [&](int64_t i) { return x_.row(first + i); };
    const auto row_scale = [&](int64_t i) { return args_.x_scale ? args_.x_scale + token[i] * groups : nullptr; };
    const int real = static_cast<int>(std::min<int64_t>(GATES, args_.width - b * GATES));
    const auto emit = [&](int64_t start, int n, const float* sums) {
      for (int r = 0; r < n; ++r, sums += COLUMNS) {
        Operand* to = act_.get() + (first + start + r) * act_stride_ + b * GATES;
        for (int c = 0; c < GATES; c += Float::N) {
          const Float act = silu(load(sums + c)) * load(sums + GATES + c);
          // Columns past the width repeat the last one: they must not reach stage 2.
          const Mask inside = first_lanes(std::clamp(real - c, 0, Float::N));
          store_act(to + c, blend(inside, act, zero()), args_.act_dtype);
        }
      }
    };
    const bool scaled = args_.w13_scale || args_.x_scale;
    Products::multiply(block(args_.w13, args_.w13_scale, args_.w13_scale_width, index, next, args_.hidden, scaled),
                       plan_.first[expert + 1] - first, row, row_scale, scratch, total, emit);
  }

  void down_and_sum(int64_t b, Operand* scratch, float* total, float* sums) {
    std::fill_n(sums, args_.num_tokens * COLUMNS, 0.0f);
    for (size_t i = 0; i < plan_.active.size(); ++i) {
      const ExpertBlock at = down_block(plan_, i, b, blocks2_);
      const int64_t first = plan_.first[at.expert];
      const auto row = [&](int64_t i) { return act_.get() + (first + i) * act_stride_; };
      const auto row_scale = [](int64_t) -> const float* { return nullptr; };
      const auto emit = [&](int64_t start, int n, const float* product) {
        for (int r = 0; r < n; ++r, product += COLUMNS) {
          float* sum = sums + plan_.token[first + start + r] * COLUMNS;
          const Float weight = set1(plan_.weight[first + start + r]);
          for (int c = 0; c < COLUMNS; c += Float::N) store(sum + c, fma(weight, load(product + c), load(sum + c)));
        }
      };
      Products::multiply(block(args_.w2, args_.w2_scale, args_.w2_scale_width, at.index, at.next, args_.width, args_.w2_scale != nullptr),
                         plan_.first[at.expert + 1] - first, row, row_scale, scratch, total, emit);
    }
    write_block(args_, b, sums);
  }

  const ExpertsArgs& args_;
  const Plan& plan_;
  const int64_t blocks13_ = divided_up(args_.width, GATES);
  const int64_t blocks2_ = divided_up(args_.hidden, COLUMNS);
  const int64_t act_stride_ = spread_stride<Operand>(blocks13_ * GATES);
  bool parallel_;
  Products x_;
  Buffer<Operand> act_;
};

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
