// Rows of activations as column_block.h's products read them: pairs of bf16 or float32, in place where they are that.
#pragma once
#include <cstdlib>
#include <memory>
#include <type_traits>

#include "column_block.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};
template <class T>
using Buffer = std::unique_ptr<T[], Free>;

// Uninitialised memory, aligned to a cache line.
template <class T>
inline Buffer<T> buffer(int64_t count) {
  const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 64) / 64 * 64;
  return Buffer<T>(static_cast<T*>(std::aligned_alloc(64, bytes)));
}

constexpr int64_t even(int64_t n) { return n + n % 2; }

// Elements between rows so that neighbours start an odd number of cache lines apart: M2's widths are multiples of 1 KB,
// and a cache would keep all rows in a few of its sets.
template <class T>
constexpr int64_t spread_stride(int64_t count) {
  constexpr int64_t line = 64 / sizeof(T);
  return (divided_up(count, line) | 1) * line;
}

template <class Operand>
class OperandRows {
 public:
  OperandRows(const void* x, int64_t stride, Dtype dtype, int64_t num_rows, int64_t count)
      : x_(x), stride_(stride), dtype_(dtype), count_(count) {
    // A strip of rows of whole pairs in the operand's dtype needs no copy.
    const bool same = dtype == (std::is_same_v<Operand, BFloat16> ? Dtype::bfloat16 : Dtype::float32);
    if (!same || count % 2 || num_rows > ROWS) copy_ = buffer<Operand>(num_rows * copy_stride_);
    num_copies_ = copy_ ? num_rows : 0;
  }

  // Rows that copy() must have seen before row() is called.
  int64_t num_copies() const { return num_copies_; }

  void copy(int64_t t) {
    const auto convert = [&](auto* tag) {
      using From = std::remove_pointer_t<decltype(tag)>;
      const From* from = static_cast<const From*>(x_) + t * stride_;
      Operand* to = copy_.get() + t * copy_stride_;
      int64_t i = 0;
      for (; i + Float::N <= count_; i += Float::N) store(to + i, load(from + i));
      const int rest = static_cast<int>(count_ - i);
      if (rest > 0) store(to + i, load(from + i, rest), rest);
      if (count_ % 2) store(to + count_, zero(), 1);  // the other half of the last pair
    };
    if (dtype_ == Dtype::float8_e4m3) return convert(static_cast<Float8*>(nullptr));
    with_float(dtype_, convert);
  }

  const Operand* row(int64_t t) const {
    return copy_ ? copy_.get() + t * copy_stride_ : static_cast<const Operand*>(x_) + t * stride_;
  }

 private:
  const void* x_;
  int64_t stride_;
  Dtype dtype_;
  int64_t count_;
  int64_t num_copies_;
  const int64_t copy_stride_ = spread_stride<Operand>(even(count_));
  Buffer<Operand> copy_;
};

// to[0..count) = from, rounded to the storage type.
template <class Out>
inline void round_columns(const float* from, Out* to, int64_t count) {
  int64_t c = 0;
  for (; c + Float::N <= count; c += Float::N) store(to + c, load(from + c));
  if (c < count) store(to + c, load(from + c), static_cast<int>(count - c));
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
