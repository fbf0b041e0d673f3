// The router's logits: float32 products and sums whatever the dtype of x, never TF32 or bf16.
#include "router_gemm.h"

#include "row_products.h"

namespace minimax_m2::MINIMAX_M2_ISA {

void router_gemm(const RouterGemmArgs& args) {
  with_float(args.x_dtype, [&](auto* tag) {
    const auto* x = static_cast<std::add_const_t<std::remove_pointer_t<decltype(tag)>>*>(args.x);
    multiply_rows([&](int64_t t) { return x + t * args.x_stride; }, args.num_tokens, args.weight, args.weight_stride,
                  args.num_experts, args.hidden, [&](int64_t t, int64_t e, int count, Float sums) {
                    const Float logits = args.bias ? sums + load(args.bias + e, count) : sums;
                    store(args.logits + t * args.num_experts + e, logits, count);
                  });
  });
}

}  // namespace minimax_m2::MINIMAX_M2_ISA
