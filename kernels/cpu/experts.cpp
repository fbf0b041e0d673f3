// A mixture's experts in vectors: bf16 and e4m3 weights meet bf16 rows in dot(), others float32 rows in fma. What runs when
// stands in experts_mixture.h.
#include "experts.h"

#include <type_traits>

#include "experts_mixture.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

// Rows of x by token, and products with blocks of 64 columns.
template <class OperandType, class StoredType>
class VectorProducts {
 public:
  using Operand = OperandType;
  using Stored = StoredType;
  struct Registers {};
  static constexpr int64_t SPARE_ROWS = 0;  // that products read behind the last

  VectorProducts(const ExpertsArgs& args, const Plan& plan)
      : token_(plan.token.data()), rows_(args.x, args.x_stride, args.x_dtype, args.num_tokens, args.hidden) {}

  int64_t num_copies() const { return rows_.num_copies(); }
  void copy(int64_t token) { rows_.copy(token); }
  const Operand* row(int64_t slot) const { return rows_.row(token_[slot]); }

  template <class... Args>
  static void multiply(const Block<Stored>& block, const Args&... args) {
    minimax_m2::MINIMAX_M2_ISA::multiply(block, args...);
  }

 private:
  const int32_t* token_;
  OperandRows<Operand> rows_;
};

template <class Operand, class Stored>
inline void mix(const ExpertsArgs& args, const Plan& plan) {
  Mixture<VectorProducts<Operand, Stored>>(args, plan).run();
}

}  // namespace

int64_t experts(const ExpertsArgs& args) {
  Plan plan;
  const int64_t bad = sort_slots(args, plan);
  if (bad >= 0) return bad;
  const bool pairs = args.act_dtype == Dtype::bfloat16;
  switch (args.weight_dtype) {
    case Dtype::bfloat16: mix<BFloat16, BFloat16>(args, plan); break;
    case Dtype::float16: mix<float, Half>(args, plan); break;
    case Dtype::float32: mix<float, float>(args, plan); break;
    default: pairs ? mix<BFloat16, Float8>(args, plan) : mix<float, Float8>(args, plan);
  }
  return -1;
}

}  // namespace minimax_m2::MINIMAX_M2_ISA
