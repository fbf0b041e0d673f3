// A mixture's experts in two stages. Slots (token, choice) are sorted by expert; stage 1 runs over (active expert, 32
// columns of gate and up) and writes silu(gate) * up per slot; stage 2 runs over 64 columns of the result and adds the
// experts in rising order into sums of its own. No thread shares a sum, so threads change no bit.
#pragma once
#include <omp.h>

#include "expert_slots.h"
#include "node_shares.h"
#include "operand_rows.h"

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

  // Units are blocks of active experts, b of one expert, then of the next.
  void gate_and_up(int64_t unit, Operand* scratch, float* total) {
    const int64_t expert = plan_.active[unit / blocks13_], b = unit % blocks13_, index = expert * blocks13_ + b;
    const int64_t last = static_cast<int64_t>(plan_.active.size()) - 1;
    const int64_t next = b + 1 < blocks13_ ? index + 1 : plan_.active[std::min(last, unit / blocks13_ + 1)] * blocks13_;
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
      const int64_t expert = plan_.active[i], index = expert * blocks2_ + b;
      // After the last expert's block the thread takes another column's, of the first.
      const bool more = i + 1 < plan_.active.size();
      const int64_t next = more ? plan_.active[i + 1] * blocks2_ + b
                                : plan_.active[0] * blocks2_ + std::min(blocks2_ - 1, b + omp_get_num_threads());
      const int64_t first = plan_.first[expert];
      const auto row = [&](int64_t i) { return act_.get() + (first + i) * act_stride_; };
      const auto row_scale = [](int64_t) -> const float* { return nullptr; };
      const auto emit = [&](int64_t start, int n, const float* product) {
        for (int r = 0; r < n; ++r, product += COLUMNS) {
          float* sum = sums + plan_.token[first + start + r] * COLUMNS;
          const Float weight = set1(plan_.weight[first + start + r]);
          for (int c = 0; c < COLUMNS; c += Float::N) store(sum + c, fma(weight, load(product + c), load(sum + c)));
        }
      };
      Products::multiply(block(args_.w2, args_.w2_scale, args_.w2_scale_width, index, next, args_.width, args_.w2_scale != nullptr),
                         plan_.first[expert + 1] - first, row, row_scale, scratch, total, emit);
    }
    with_float(args_.out_dtype, [&](auto* tag) {
      using Out = std::remove_pointer_t<decltype(tag)>;
      Out* out = static_cast<Out*>(args_.out) + b * COLUMNS;
      const int64_t real = std::min<int64_t>(COLUMNS, args_.hidden - b * COLUMNS);
      for (int64_t t = 0; t < args_.num_tokens; ++t) round_columns(sums + t * COLUMNS, out + t * args_.hidden, real);
    });
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
