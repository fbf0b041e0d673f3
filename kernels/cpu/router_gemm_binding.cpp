// Registers router_gemm for the CPU. Shapes and dtypes were checked by router_gemm.py.
#include "router_gemm.h"

#include "binding.h"

namespace minimax_m2 {
namespace {

void router_gemm(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, Tensor logits) {
  launch(router_gemm_table, RouterGemmArgs{.x = x.const_data_ptr(),
                                           .x_stride = x.stride(0),
                                           .x_dtype = dtype_of(x),
                                           .weight = static_cast<const float*>(weight.const_data_ptr()),
                                           .weight_stride = weight.stride(0),
                                           .bias = data_or_null<float>(bias),
                                           .logits = static_cast<float*>(logits.mutable_data_ptr()),
                                           .num_tokens = x.size(0),
                                           .num_experts = weight.size(0),
                                           .hidden = x.size(1)});
}

}  // namespace
}  // namespace minimax_m2

STABLE_TORCH_LIBRARY_IMPL(minimax_m2, CPU, m) { m.impl("router_gemm", TORCH_BOX(&minimax_m2::router_gemm)); }
