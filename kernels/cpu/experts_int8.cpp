// A mixture's experts of int8 weights with a scale a channel. Each token's row, and each slot's silu(gate) * up, is quantised
// to int8 with one scale; products are sums of integers, to which both scales are applied in float32. The stages and what
// threads share are those of experts.cpp, with the quantisers between them: a row's scale needs all of its columns.
#include "experts.h"

#include <omp.h>

#include <type_traits>

#include "code_block.h"
#include "expert_blocks.h"
#include "group_quant.h"
#include "node_shares.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

// Rows of codes and their scales. A row's end is filled, so that whole steps read codes.
class CodeRows {
 public:
  CodeRows(int64_t num_rows, int64_t count)
      : count_(count), stride_(spread_stride<Code>(count)), codes_(buffer<Code>(num_rows * stride_)),
        scale_(buffer<float>(num_rows)) {}

  // Quantises a row whose values at(i, n...) gives.
  template <class At>
  void quantise(int64_t row, At at) {
    const float scale = group_scale(count_, LARGEST_INT8, at);
    const Float divisor = set1(scale);
    Code* to = codes_.get() + row * stride_;
    for_vectors(count_, [&](int64_t i, auto... n) {
      const Float quotient = max(set1(-LARGEST_INT8), min(set1(LARGEST_INT8), at(i, n...) / divisor));
      store_codes(to + i, to_int(quotient) + set1_int(CODE_BIAS));
    });
    scale_[row] = scale;
  }

  const Code* row(int64_t row) const { return codes_.get() + row * stride_; }
  float scale(int64_t row) const { return scale_[row]; }

 private:
  int64_t count_;
  int64_t stride_;
  Buffer<Code> codes_;
  Buffer<float> scale_;
};

class Int8Mixture {
 public:
  Int8Mixture(const ExpertsArgs& args, const Plan& plan)
      : args_(args), plan_(plan), slots_(static_cast<int64_t>(plan.token.size())), x_(args.num_tokens, args.hidden),
        act_(slots_, args.width), values_(buffer<float>(slots_ * blocks13_ * GATES)) {}

  void run() {
    const int64_t active = static_cast<int64_t>(plan_.active.size());
    NodeLoop gates(active, blocks13_), downs(1, blocks2_);
#pragma omp parallel if (!serial_products(slots_ * args_.hidden * args_.width))
    {
      const Buffer<int32_t> total = buffer<int32_t>(CHUNK * COLUMNS);
      const Buffer<float> sums = buffer<float>(args_.num_tokens * COLUMNS);
#pragma omp for schedule(static)
      for (int64_t t = 0; t < args_.num_tokens; ++t) quantise_token(t);
      gates.run(run_of(active * blocks13_, omp_get_num_threads()),
                [&](int64_t i, int64_t b, int64_t) { gate_and_up(i * blocks13_ + b, total.get()); });
#pragma omp barrier
#pragma omp for schedule(static)
      for (int64_t slot = 0; slot < slots_; ++slot) {
        const float* values = values_.get() + slot * blocks13_ * GATES;
        act_.quantise(slot, [&](int64_t i, auto... n) { return load(values + i, n...); });
      }
      downs.run(1, [&](int64_t, int64_t b, int64_t) { down_and_sum(b, total.get(), sums.get()); });
    }
  }

 private:
  void quantise_token(int64_t token) {
    with_float(args_.x_dtype, [&](auto* tag) {
      using X = std::remove_pointer_t<decltype(tag)>;
      const X* from = static_cast<const X*>(args_.x) + token * args_.x_stride;
      x_.quantise(token, [&](int64_t i, auto... n) { return load(from + i, n...); });
    });
  }

  // Block `index`, after which the thread likely takes block `next`.
  CodeBlock block(const void* values, const int32_t* start, int64_t index, int64_t next, int64_t inputs) const {
    const int64_t bytes = divided_up(inputs, CODE_STEP) * CODE_STEP * COLUMNS;
    const int8_t* first = static_cast<const int8_t*>(values);
    return {.values = first + index * bytes, .start = start + index * COLUMNS, .inputs = inputs,
            .next = first + next * bytes};
  }

  void gate_and_up(int64_t unit, int32_t* total) {
    const auto [expert, b, index, next] = gate_block(plan_, unit, blocks13_);
    const int64_t first = plan_.first[expert];
    const int32_t* token = plan_.token.data() + first;
    const float* scale = args_.w13_scale + index * COLUMNS;
    const auto emit = [&](int64_t start, int n, const int32_t* sums) {
      for (int r = 0; r < n; ++r, sums += COLUMNS) {
        float* to = values_.get() + (first + start + r) * blocks13_ * GATES + b * GATES;
        const Float own = set1(x_.scale(token[start + r]));
        for (int c = 0; c < GATES; c += Float::N) {
          const Float gate = to_float(load_int(sums + c)) * own * load(scale + c);
          const Float up = to_float(load_int(sums + GATES + c)) * own * load(scale + GATES + c);
          store(to + c, silu(gate) * up);
        }
      }
    };
    multiply_codes(block(args_.w13, args_.w13_start, index, next, args_.hidden), plan_.first[expert + 1] - first,
                   [&](int64_t i) { return x_.row(token[i]); }, total, emit);
  }

  void down_and_sum(int64_t b, int32_t* total, float* sums) {
    std::fill_n(sums, args_.num_tokens * COLUMNS, 0.0f);
    for (size_t i = 0; i < plan_.active.size(); ++i) {
      const ExpertBlock at = down_block(plan_, i, b, blocks2_);
      const int64_t first = plan_.first[at.expert];
      const float* scale = args_.w2_scale + at.index * COLUMNS;
      const auto emit = [&](int64_t start, int n, const int32_t* product) {
        for (int r = 0; r < n; ++r, product += COLUMNS) {
          const int64_t slot = first + start + r;
          float* sum = sums + plan_.token[slot] * COLUMNS;
          const Float own = set1(act_.scale(slot)), weight = set1(plan_.weight[slot]);
          for (int c = 0; c < COLUMNS; c += Float::N) {
            const Float down = to_float(load_int(product + c)) * own * load(scale + c);
            store(sum + c, fma(weight, down, load(sum + c)));
          }
        }
      };
      multiply_codes(block(args_.w2, args_.w2_start, at.index, at.next, args_.width), plan_.first[at.expert + 1] - first,
                     [&](int64_t i) { return act_.row(first + i); }, total, emit);
    }
    write_block(args_, b, sums);
  }

  const ExpertsArgs& args_;
  const Plan& plan_;
  const int64_t blocks13_ = divided_up(args_.width, GATES);
  const int64_t blocks2_ = divided_up(args_.hidden, COLUMNS);
  const int64_t slots_;
  CodeRows x_;
  CodeRows act_;
  Buffer<float> values_;  // silu(gate) * up, by slot
};

}  // namespace

int64_t experts_int8(const ExpertsArgs& args) {
  Plan plan;
  const int64_t bad = sort_slots(args, plan);
  if (bad < 0) Int8Mixture(args, plan).run();
  return bad;
}

}  // namespace minimax_m2::MINIMAX_M2_ISA
