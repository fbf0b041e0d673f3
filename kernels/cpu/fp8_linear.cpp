// A dense layer over an e4m3 weight in blocks of 64 outputs. Codes are exact in bf16 and float32, and scales meet the
// float32 sums of each group of inputs: nothing is rounded to bf16 on the way. bf16 and e4m3 activations go through dot(),
// the others through fma.
#include "fp8_linear.h"

#include <omp.h>

#include "dispatch.h"
#include "node_shares.h"
#include "operand_rows.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

// Rows that one unit of work takes through a block: so many that widening its codes once more costs nothing.
constexpr int64_t UNIT_ROWS = 5 * CHUNK;

template <class Operand, class Out>
inline void multiply_all(const Fp8LinearArgs& args, Out* out) {
  const int64_t blocks = divided_up(args.num_outputs, COLUMNS), units = divided_up(args.num_tokens, UNIT_ROWS);
  const int64_t groups = divided_up(args.depth, args.columns), slab = even(std::min(slab_of(args.columns), args.depth));
  OperandRows<Operand> x(args.x, args.x_stride, args.x_dtype, args.num_tokens, args.depth);
  NodeLoop loop(1, blocks, units);
#pragma omp parallel if (!serial_products(args.num_tokens * args.num_outputs * args.depth))
  {
    const Buffer<Operand> scratch = buffer<Operand>(slab * COLUMNS);
    const Buffer<float> total = buffer<float>(CHUNK * COLUMNS);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < x.num_copies(); ++t) x.copy(t);
    loop.run(run_of(blocks * units, omp_get_num_threads()), [&](int64_t, int64_t b, int64_t unit) {
      const int64_t begin = unit * UNIT_ROWS, count = std::min(UNIT_ROWS, args.num_tokens - begin);
      const Float8* weight = static_cast<const Float8*>(args.weight);
      const int64_t next = unit + 1 < units ? b : std::min(blocks - 1, b + 1);
      const Block<Float8> block{.values = weight + b * even(args.depth) * COLUMNS,
                                .scale = args.scale + b * groups * args.scale_width,
                                .scale_width = args.scale_width,
                                .inputs = args.depth,
                                .group = args.columns,
                                .next = weight + next * even(args.depth) * COLUMNS};
      const auto row = [&](int64_t i) { return x.row(begin + i); };
      const auto row_scale = [&](int64_t i) {
        return args.x_scale ? args.x_scale + (begin + i) * args.x_scale_stride : nullptr;
      };
      const int64_t real = std::min<int64_t>(COLUMNS, args.num_outputs - b * COLUMNS);
      multiply(block, count, row, row_scale, scratch.get(), total.get(), [&](int64_t start, int n, const float* sums) {
        for (int r = 0; r < n; ++r, sums += COLUMNS)
          round_columns(sums, out + (begin + start + r) * args.num_outputs + b * COLUMNS, real);
      });
    });
  }
}

}  // namespace

void fp8_linear(const Fp8LinearArgs& args) {
  const bool pairs = args.x_dtype == Dtype::bfloat16 || args.x_dtype == Dtype::float8_e4m3;
  with_float(args.out_dtype, [&](auto* tag) {
    auto* out = static_cast<decltype(tag)>(args.out);
    pairs ? multiply_all<BFloat16>(args, out) : multiply_all<float>(args, out);
  });
}

}  // namespace minimax_m2::MINIMAX_M2_ISA
