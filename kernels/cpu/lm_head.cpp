// Logits of the chosen rows over the true vocabulary; bf16 products through dot(), float32 sums are the result.
#include "lm_head.h"

#include "row_products.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

// token(n) is the one whose logits come n-th.
template <class Token>
inline void multiply(const LmHeadArgs& args, Token&& token) {
  with_float(args.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const auto* x = static_cast<const T*>(args.x);
    const auto* weight = static_cast<const T*>(args.weight);
    // Rows of the weight from vocab_size on are padding and never read.
    multiply_rows([&](int64_t n) { return x + token(n) * args.x_stride; }, args.num_rows, weight, args.weight_stride,
                  args.vocab_size, args.hidden,
                  [&](int64_t n, int64_t v, int count, Float sums) {
                    store(args.logits + n * args.vocab_size + v, sums, count);
                  });
  });
}

}  // namespace

int64_t lm_head(const LmHeadArgs& args) {
  int64_t bad = -1;
  if (args.rows == nullptr) {
    multiply(args, [](int64_t n) { return n; });
    return bad;
  }
  with_index(args.rows_dtype, [&](auto* tag) {
    const auto* rows = static_cast<const std::remove_pointer_t<decltype(tag)>*>(args.rows);
    for (int64_t n = args.num_rows - 1; n >= 0; --n)
      if (rows[n] < 0 || rows[n] >= args.num_tokens) bad = n;
    if (bad < 0) multiply(args, [rows](int64_t n) { return static_cast<int64_t>(rows[n]); });
  });
  return bad;
}

}  // namespace minimax_m2::MINIMAX_M2_ISA
