// A dense layer over an e4m3 weight. Codes are exact in bf16 and float32, so a block of the weight is expanded once into
// a scratch that stays in the second-level cache, and scales meet the float32 sums of each group of inputs: nothing is
// rounded to bf16 on the way. bf16 and e4m3 activations go through dot(), the others through fma.
#include "fp8_linear.h"

#include <vector>

#include "row_products.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

// Each row of a register block has two sets of sums: of the group, and of all groups so far.
constexpr int ROWS = BLOCK_ROWS / 2;

// Weight rows that one thread expands at a time.
constexpr int64_t WIDTH = 32;

template <class T>
inline void expand(const Float8* codes, int64_t count, T* to) {
  int64_t k = 0;
  for (; k + Float::N <= count; k += Float::N) store(to + k, load(codes + k));
  const int rest = static_cast<int>(count - k);
  if (rest > 0) store(to + k, load(codes + k, rest), rest);
}

// emit(r, c, sum) for the rows x[0..R), of tokens t.., and the outputs n..n+columns whose expanded rows stand in w.
template <int R, int C, class X, class W, class Emit>
inline void multiply_scaled(const Fp8LinearArgs& args, const X* const (&x)[R], int64_t t, const W* w, int64_t n,
                            int columns, Emit&& emit) {
  const W* column[C];
  const float* scale[C];
  // A column past the end repeats the last one and is not emitted.
  for (int c = 0; c < C; ++c) {
    const int64_t within = std::min(c, columns - 1);
    column[c] = w + within * args.depth;
    scale[c] = args.scale + (n + within) / args.rows * args.scale_stride;
  }
  Float total[R][C];
  clear(total);
  for (int64_t group = 0, k = 0; k < args.depth; ++group, k += args.columns) {
    Float sum[R][C];
    clear(sum);
    add_products(sum, x, column, k, std::min(args.depth, k + args.columns));
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const float own = args.x_scale ? args.x_scale[(t + r) * args.x_scale_stride + group] : 1.0f;
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) total[r][c] = fma(sum[r][c], set1(scale[c][group] * own), total[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
      if (c < columns) emit(r, c, reduce_add(total[r][c]));
}

// W is what codes are expanded to: BFloat16 beside bf16 rows of x, float beside the others.
template <class X, class W, class Out>
inline void multiply(const Fp8LinearArgs& args, const X* x, int64_t x_stride, Out* out) {
  const int64_t blocks = (args.num_outputs + WIDTH - 1) / WIDTH;
  const int64_t slabs = (args.num_tokens + STREAMED_ROWS - 1) / STREAMED_ROWS;
#pragma omp parallel if (args.num_tokens * args.num_outputs * args.depth >= SERIAL_PRODUCTS)
  {
    std::vector<W> expanded(static_cast<size_t>(WIDTH * args.depth));
#pragma omp for schedule(static) collapse(2)
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t slab = 0; slab < slabs; ++slab) {
        const int64_t begin = block * WIDTH, end = std::min(args.num_outputs, begin + WIDTH);
        for (int64_t n = begin; n < end; ++n)
          expand(static_cast<const Float8*>(args.weight) + n * args.weight_stride, args.depth,
                 expanded.data() + (n - begin) * args.depth);
        const int64_t t_end = std::min(args.num_tokens, (slab + 1) * STREAMED_ROWS);
        for (int64_t t = slab * STREAMED_ROWS; t < t_end;) {
          const int64_t left = t_end - t, strips = (left + ROWS - 1) / ROWS;
          const int rows = static_cast<int>((left + strips - 1) / strips);
          with_rows(rows, [&](auto count) {
            constexpr int R = std::min(decltype(count)::value, ROWS), C = block_columns(R);
            const X* row[R];
            for (int r = 0; r < R; ++r) row[r] = x + (t + r) * x_stride;
            for (int64_t n = begin; n < end; n += C)
              multiply_scaled<R, C>(args, row, t, expanded.data() + (n - begin) * args.depth, n,
                                    static_cast<int>(std::min<int64_t>(C, end - n)), [&](int r, int c, float sum) {
                                      round_to(out + (t + r) * args.num_outputs + n + c, sum);
                                    });
          });
          t += rows;
        }
      }
    }
  }
}

}  // namespace

void fp8_linear(const Fp8LinearArgs& args) {
  with_float(args.out_dtype, [&](auto* out_tag) {
    auto* out = static_cast<decltype(out_tag)>(args.out);
    if (args.x_dtype == Dtype::float8_e4m3) {
      std::vector<BFloat16> x(static_cast<size_t>(args.num_tokens * args.depth));
      const auto* codes = static_cast<const Float8*>(args.x);
#pragma omp parallel for if (args.num_tokens * args.depth >= SERIAL_PRODUCTS)
      for (int64_t t = 0; t < args.num_tokens; ++t) expand(codes + t * args.x_stride, args.depth, x.data() + t * args.depth);
      return multiply<BFloat16, BFloat16>(args, x.data(), args.depth, out);
    }
    with_float(args.x_dtype, [&](auto* tag) {
      using X = std::remove_pointer_t<decltype(tag)>;
      using W = std::conditional_t<std::is_same_v<X, BFloat16>, BFloat16, float>;
      multiply<X, W>(args, static_cast<const X*>(args.x), args.x_stride, out);
    });
  });
}

}  // namespace minimax_m2::MINIMAX_M2_ISA
