// A dense layer over a weight stored one row per output; bf16 products through dot(), sums in float32.
#include "linear.h"

#include "row_products.h"

namespace minimax_m2::MINIMAX_M2_ISA {

void linear(const LinearArgs& args) {
  with_float(args.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const auto* x = static_cast<const T*>(args.x);
    const auto* weight = static_cast<const T*>(args.weight);
    with_float(args.out_dtype, [&](auto* out_tag) {
      auto* out = static_cast<decltype(out_tag)>(args.out);
      multiply_rows([&](int64_t t) { return x + t * args.x_stride; }, args.num_tokens, weight, args.weight_stride,
                    args.num_outputs, args.depth,
                    [&](int64_t t, int64_t n, int count, Float sums) {
                      store(out + t * args.num_outputs + n, sums, count);
                    });
    });
  });
}

}  // namespace minimax_m2::MINIMAX_M2_ISA
