// What a planned program calls, for this CPU: vector instructions, an element after the other, by the names that
// Huawei's device library gives them.
//
// Operands are views of memory as MLIR's C interface hands them over. Nothing is done here but what names and types
// say: how the device rounds a quotient, a root or an exponential, and in which order it adds, only the device knows.
// What an instruction may use as scratch is spoilt afterwards, so that a plan which keeps something there is seen.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>

// ``device_program.py`` adds the number of operands to a name: no other call finds it.
#define INSTRUCTION(name, operands) extern "C" void _mlir_ciface_##name##_##operands

namespace {

using Half = _Float16;

// The upper half of a float32, rounded to nearest even.
struct Brain {
  uint16_t bits;

  Brain() = default;
  Brain(float x) {
    uint32_t word;
    std::memcpy(&word, &x, 4);
    bits = std::isnan(x) ? 0x7FC0 : static_cast<uint16_t>((word + 0x7FFF + ((word >> 16) & 1)) >> 16);
  }
  operator float() const {
    const uint32_t word = static_cast<uint32_t>(bits) << 16;
    float x;
    std::memcpy(&x, &word, 4);
    return x;
  }
};

[[noreturn]] void refuse(const char* what) {
  std::fprintf(stderr, "vector_library.cpp: %s is not known here\n", what);
  std::abort();
}

// A scalar as it is handed over: a bfloat16 in the register of a half.
template <class T>
using Passed = std::conditional_t<std::is_same_v<T, Brain>, Half, T>;

template <class T>
T taken(Passed<T> x) {
  T value;
  std::memcpy(&value, &x, sizeof value);
  return value;
}

template <class T, int R>
struct View {
  T* allocated;
  T* first;
  int64_t offset;
  int64_t sizes[R];
  int64_t strides[R];

  View<T, R - 1> row(int64_t i) const {
    View<T, R - 1> found{allocated, first, offset + i * strides[0], {}, {}};
    for (int axis = 1; axis < R; ++axis) found.sizes[axis - 1] = sizes[axis], found.strides[axis - 1] = strides[axis];
    return found;
  }
};

template <class T>
struct View<T, 1> {
  T* allocated;
  T* first;
  int64_t offset;
  int64_t sizes[1];
  int64_t strides[1];

  // Truths lie eight to a byte, the first lowest.
  T get(int64_t i) const {
    const int64_t at = offset + i * strides[0];
    if constexpr (std::is_same_v<T, bool>) {
      return reinterpret_cast<const uint8_t*>(first)[at >> 3] >> (at & 7) & 1;
    } else {
      return first[at];
    }
  }
  void set(int64_t i, T x) const {
    const int64_t at = offset + i * strides[0];
    if constexpr (std::is_same_v<T, bool>) {
      uint8_t& byte = reinterpret_cast<uint8_t*>(first)[at >> 3];
      byte = static_cast<uint8_t>((byte & ~(1u << (at & 7))) | (static_cast<unsigned>(x) << (at & 7)));
    } else {
      first[at] = x;
    }
  }
};

template <class T>
void spoil(const View<T, 1>& scratch) {
  if constexpr (std::is_same_v<T, bool>) {
    for (int64_t i = 0; i < scratch.sizes[0]; ++i) scratch.set(i, true);
  } else {
    std::memset(static_cast<void*>(scratch.first + scratch.offset), 0xFF, scratch.sizes[0] * sizeof(T));
  }
}

// An operand of one element, or of one row, goes with all of the others.
inline int64_t place(int64_t i, int64_t size) { return size == 1 ? 0 : i; }

template <class F, class To, class... From>
void each(F f, const View<To, 1>& to, const View<From, 1>&... from) {
  if (((from.sizes[0] != to.sizes[0] && from.sizes[0] != 1) || ...)) refuse("an instruction on vectors of two lengths");
  for (int64_t i = 0; i < to.sizes[0]; ++i) to.set(i, f(from.get(place(i, from.sizes[0]))...));
}

template <class F, class To, int R, class... From>
void each(F f, const View<To, R>& to, const View<From, R>&... from) {
  for (int64_t i = 0; i < to.sizes[0]; ++i) each(f, to.row(i), from.row(place(i, from.sizes[0]))...);
}

template <class T, int R>
void copy(const View<T, R>& from, const View<T, R>& to) {
  each([](T x) { return x; }, to, from);
}

template <class T, int R>
void load(const View<T, R>& from, const View<T, R>& to, int64_t left) {
  if (left != 0) refuse("a load that pads on its left");
  copy(from, to);
}

template <class T, int R>
void store(const View<T, R>& from, const View<T, R>& to, int32_t atomic) {
  if (atomic != 0) refuse("a store that adds");
  copy(from, to);
}

// The modes of a conversion, as the compiler numbers them.
enum Mode : int32_t { NEAREST, AWAY, FLOOR, CEIL, CUT };

template <class To, class From>
To converted(From x, int32_t mode) {
  if constexpr (std::is_integral_v<To> && !std::is_integral_v<From>) {
    float y = static_cast<float>(x);
    switch (mode) {
      case NEAREST: y = std::nearbyint(y); break;
      case AWAY: y = std::round(y); break;
      case FLOOR: y = std::floor(y); break;
      case CEIL: y = std::ceil(y); break;
      case CUT: y = std::trunc(y); break;
      default: refuse("a conversion's rounding");
    }
    // The device saturates; of a NaN it makes zero.
    if (std::isnan(y)) return 0;
    const double least = std::numeric_limits<To>::min(), most = std::numeric_limits<To>::max();
    return y <= least ? std::numeric_limits<To>::min() : y >= most ? std::numeric_limits<To>::max() : static_cast<To>(y);
  } else if constexpr (std::is_integral_v<To> || sizeof(To) > sizeof(From)) {
    return static_cast<To>(x);
  } else {
    if (mode != NEAREST && mode != CUT) refuse("a conversion's rounding");
    if (mode == CUT && static_cast<float>(static_cast<To>(static_cast<float>(x))) != static_cast<float>(x))
      refuse("a conversion that cuts off");
    return static_cast<To>(static_cast<float>(x));
  }
}

struct Add { template <class T> T operator()(T a, T b) const { return a + b; } };
struct Sub { template <class T> T operator()(T a, T b) const { return a - b; } };
struct Mul { template <class T> T operator()(T a, T b) const { return a * b; } };
struct Div { template <class T> T operator()(T a, T b) const { return a / b; } };
struct Max { template <class T> T operator()(T a, T b) const { return a < b ? b : a; } };
struct Min { template <class T> T operator()(T a, T b) const { return b < a ? b : a; } };
struct And { template <class T> T operator()(T a, T b) const { return a & b; } };
struct Or { template <class T> T operator()(T a, T b) const { return a | b; } };
struct Xor { template <class T> T operator()(T a, T b) const { return a ^ b; } };

// All of a vector: halves folded upon each other, as lanes are added.
template <class F, class T>
T folded(F f, const View<T, 1>& from, int64_t first, int64_t count) {
  if (count == 1) return from.get(first);
  return f(folded(f, from, first, count / 2), folded(f, from, first + count / 2, count - count / 2));
}

template <class F, class T>
void reduce_r(F f, const View<T, 1>& from, const View<T, 1>& to, T start) {
  to.set(0, from.sizes[0] ? folded(f, from, 0, from.sizes[0]) : start);
}

template <class F, class T>
void reduce_ar(F f, const View<T, 2>& from, const View<T, 2>& to, T start) {
  for (int64_t i = 0; i < from.sizes[0]; ++i) reduce_r(f, from.row(i), to.row(i), start);
}

template <class F, class T>
void reduce_ra(F f, const View<T, 2>& from, const View<T, 2>& to, T start) {
  const View<T, 1> sums = to.row(0);
  for (int64_t j = 0; j < from.sizes[1]; ++j) {
    T found = from.sizes[0] ? from.row(0).get(j) : start;
    for (int64_t i = 1; i < from.sizes[0]; ++i) found = f(found, from.row(i).get(j));
    sums.set(j, found);
  }
}

}  // namespace

#define EACH_FLOAT(X) X(float, float) X(half, Half)
#define EACH_NUMBER(X) EACH_FLOAT(X) X(int16_t, int16_t) X(int32_t, int32_t)
#define EACH_WORD(X) X(int8_t, int8_t) X(int16_t, int16_t) X(int32_t, int32_t) X(int64_t, int64_t) X(uint8_t, uint8_t)
#define EACH_STORED(X) EACH_FLOAT(X) X(bfloat16_t, Brain) EACH_WORD(X)

#define COPIES(name, T, R)                                                                                            \
  INSTRUCTION(load_gm_to_ubuf_##R##d_##name, 5)                                                                       \
  (const View<T, R>* from, const View<T, R>* to, int32_t, Passed<T>, int64_t left) { load(*from, *to, left); }        \
  INSTRUCTION(store_ubuf_to_gm_##R##d_##name, 3)                                                                      \
  (const View<T, R>* from, const View<T, R>* to, int32_t atomic) { store(*from, *to, atomic); }                       \
  INSTRUCTION(copy_ubuf_to_ubuf_##R##d_##name, 4)                                                                     \
  (const View<T, R>* from, const View<T, R>* to, int32_t, Passed<T>) { copy(*from, *to); }                            \
  INSTRUCTION(broadcast_scalar_##name##_to_##R##d, 2)(Passed<T> x, const View<T, R>* to) {                            \
    each([x] { return taken<T>(x); }, *to);                                                                           \
  }
#define STORED(name, T) COPIES(name, T, 1) COPIES(name, T, 2) COPIES(name, T, 3)
EACH_STORED(STORED)
COPIES(bool, bool, 1)

#define SELECTIONS(name, T)                                                                                           \
  INSTRUCTION(vsel_ss_1d_##name, 5)                                                                                   \
  (const View<bool, 1>* which, Passed<T> a, Passed<T> b, const View<T, 1>* to, const View<T, 1>* scratch) {           \
    each([a, b](bool first) { return first ? taken<T>(a) : taken<T>(b); }, *to, *which);                              \
    spoil(*scratch);                                                                                                  \
  }                                                                                                                   \
  INSTRUCTION(vsel_sv_1d_##name, 5)                                                                                   \
  (const View<bool, 1>* which, Passed<T> a, const View<T, 1>* b, const View<T, 1>* to, const View<T, 1>* scratch) {   \
    each([a](bool first, T y) { return first ? taken<T>(a) : y; }, *to, *which, *b);                                  \
    spoil(*scratch);                                                                                                  \
  }                                                                                                                   \
  INSTRUCTION(vsel_vs_1d_##name, 5)                                                                                   \
  (const View<bool, 1>* which, const View<T, 1>* a, Passed<T> b, const View<T, 1>* to, const View<T, 1>* scratch) {   \
    each([b](bool first, T x) { return first ? x : taken<T>(b); }, *to, *which, *a);                                  \
    spoil(*scratch);                                                                                                  \
  }                                                                                                                   \
  INSTRUCTION(vsel_vv_1d_bool_##name, 5)                                                                              \
  (const View<bool, 1>* which, const View<T, 1>* a, const View<T, 1>* b, const View<T, 1>* to,                        \
   const View<T, 1>* scratch) {                                                                                       \
    each([](bool first, T x, T y) { return first ? x : y; }, *to, *which, *a, *b);                                    \
    spoil(*scratch);                                                                                                  \
  }
EACH_STORED(SELECTIONS)

// The same on types whose selection needs no scratch.
#define BARE_SELECTIONS(name, T)                                                                                      \
  INSTRUCTION(vsel_ss_1d_##name, 4)(const View<bool, 1>* which, T a, T b, const View<T, 1>* to) {                     \
    each([a, b](bool first) { return first ? a : b; }, *to, *which);                                                  \
  }                                                                                                                   \
  INSTRUCTION(vsel_sv_1d_##name, 4)(const View<bool, 1>* which, T a, const View<T, 1>* b, const View<T, 1>* to) {     \
    each([a](bool first, T y) { return first ? a : y; }, *to, *which, *b);                                            \
  }                                                                                                                   \
  INSTRUCTION(vsel_vs_1d_##name, 4)(const View<bool, 1>* which, const View<T, 1>* a, T b, const View<T, 1>* to) {     \
    each([b](bool first, T x) { return first ? x : b; }, *to, *which, *a);                                            \
  }
BARE_SELECTIONS(int64_t, int64_t)

#define OF_TWO(op, F, name, T, R)                                                                                     \
  INSTRUCTION(v##op##_##R##d_##name, 4)                                                                               \
  (const View<T, R>* a, const View<T, R>* b, const View<T, R>* to, const View<T, 1>* scratch) {                       \
    each(F(), *to, *a, *b);                                                                                           \
    spoil(*scratch);                                                                                                  \
  }
#define BY_SCALAR(op, F, name, T, R)                                                                                  \
  INSTRUCTION(v##op##_vs_##R##d_##name, 4)                                                                            \
  (const View<T, R>* a, T b, const View<T, R>* to, const View<T, 1>* scratch) {                                       \
    each([b](T x) { return F()(x, b); }, *to, *a);                                                                    \
    spoil(*scratch);                                                                                                  \
  }
#define OF_SCALAR(op, F, name, T, R)                                                                                  \
  INSTRUCTION(v##op##_sv_##R##d_##name, 4)                                                                            \
  (T a, const View<T, R>* b, const View<T, R>* to, const View<T, 1>* scratch) {                                       \
    each([a](T y) { return F()(a, y); }, *to, *b);                                                                    \
    spoil(*scratch);                                                                                                  \
  }
#define ARITHMETIC(name, T, R)                                                                                        \
  OF_TWO(add, Add, name, T, R) OF_TWO(sub, Sub, name, T, R) OF_TWO(mul, Mul, name, T, R)                              \
  OF_TWO(max, Max, name, T, R) OF_TWO(min, Min, name, T, R)                                                           \
  BY_SCALAR(adds, Add, name, T, R) BY_SCALAR(muls, Mul, name, T, R) BY_SCALAR(maxs, Max, name, T, R)                  \
  BY_SCALAR(mins, Min, name, T, R) BY_SCALAR(sub, Sub, name, T, R) OF_SCALAR(sub, Sub, name, T, R)
#define NUMBER(name, T) ARITHMETIC(name, T, 1) ARITHMETIC(name, T, 2)
EACH_NUMBER(NUMBER)

#define OF_ONE(op, f, name, T, R)                                                                                     \
  INSTRUCTION(v##op##_##R##d_##name, 3)(const View<T, R>* a, const View<T, R>* to, const View<T, 1>* scratch) {       \
    each([](T x) { return static_cast<T>(f(static_cast<float>(x))); }, *to, *a);                                      \
    spoil(*scratch);                                                                                                  \
  }
#define CURVES(name, T, R)                                                                                            \
  OF_TWO(div, Div, name, T, R) BY_SCALAR(div, Div, name, T, R) OF_SCALAR(div, Div, name, T, R)                        \
  OF_ONE(exp, std::exp, name, T, R) OF_ONE(sqrt, std::sqrt, name, T, R) OF_ONE(abs, std::fabs, name, T, R)
#define CURVED(name, T) CURVES(name, T, 1) CURVES(name, T, 2)
EACH_FLOAT(CURVED)

#define BITWISE(name, T)                                                                                              \
  OF_TWO(and, And, name, T, 1) OF_TWO(or, Or, name, T, 1) OF_TWO(xor, Xor, name, T, 1)                                \
  INSTRUCTION(vnot_1d_##name, 3)(const View<T, 1>* a, const View<T, 1>* to, const View<T, 1>* scratch) {              \
    each([](T x) { return static_cast<T>(x ^ (std::is_same_v<T, bool> ? 1 : -1)); }, *to, *a);                        \
    spoil(*scratch);                                                                                                  \
  }
EACH_WORD(BITWISE)
BITWISE(bool, bool)

#define SHIFTS(name, T)                                                                                               \
  INSTRUCTION(vshls_vs_1d_##name, 3)(const View<T, 1>* a, T by, const View<T, 1>* to) {                               \
    each([by](T x) { return static_cast<T>(static_cast<std::make_unsigned_t<T>>(x) << by); }, *to, *a);               \
  }                                                                                                                   \
  INSTRUCTION(vshrs_vs_1d_##name, 3)(const View<T, 1>* a, T by, const View<T, 1>* to) {                               \
    each([by](T x) { return static_cast<T>(x >> by); }, *to, *a);                                                     \
  }                                                                                                                   \
  INSTRUCTION(arange_1d_##name, 3)(const View<T, 1>* to, int64_t first, int64_t step) {                               \
    for (int64_t i = 0; i < to->sizes[0]; ++i) to->set(i, static_cast<T>(first + i * step));                          \
  }
SHIFTS(int16_t, int16_t)
SHIFTS(int32_t, int32_t)

#define COMPARISON(op, sign, name, T)                                                                                 \
  INSTRUCTION(vcmp_##op##_1d_##name, 3)(const View<T, 1>* a, const View<T, 1>* b, const View<bool, 1>* to) {          \
    each([](T x, T y) { return x sign y; }, *to, *a, *b);                                                             \
  }                                                                                                                   \
  INSTRUCTION(vcmps_##op##_1d_##name, 3)(const View<T, 1>* a, T b, const View<bool, 1>* to) {                         \
    each([b](T x) { return x sign b; }, *to, *a);                                                                     \
  }
#define COMPARISONS(name, T)                                                                                          \
  COMPARISON(eq, ==, name, T) COMPARISON(ne, !=, name, T) COMPARISON(lt, <, name, T) COMPARISON(le, <=, name, T)      \
  COMPARISON(gt, >, name, T) COMPARISON(ge, >=, name, T)
EACH_NUMBER(COMPARISONS)

#define CONVERSION(from_name, From, to_name, To, R)                                                                   \
  INSTRUCTION(vcast_##from_name##_to_##to_name##_##R##d_with_mode, 3)                                                 \
  (const View<From, R>* from, const View<To, R>* to, int32_t mode) {                                                  \
    each([mode](From x) { return converted<To>(x, mode); }, *to, *from);                                              \
  }
#define CONVERSIONS(R)                                                                                                \
  CONVERSION(bfloat16_t, Brain, float, float, R) CONVERSION(float, float, bfloat16_t, Brain, R)                       \
  CONVERSION(half, Half, float, float, R) CONVERSION(float, float, half, Half, R)                                     \
  CONVERSION(float, float, int32_t, int32_t, R) CONVERSION(int32_t, int32_t, float, float, R)                         \
  CONVERSION(half, Half, int32_t, int32_t, R) CONVERSION(half, Half, int8_t, int8_t, R)                               \
  CONVERSION(int8_t, int8_t, half, Half, R) CONVERSION(int32_t, int32_t, int64_t, int64_t, R)                         \
  CONVERSION(int64_t, int64_t, int32_t, int32_t, R)
CONVERSIONS(1)
CONVERSIONS(2)

#define CONVERSION_OVER(from_name, From, to_name, To)                                                                  \
  INSTRUCTION(vcast_##from_name##_to_##to_name##_1d_with_overflow, 4)                                                 \
  (const View<From, 1>* from, const View<To, 1>* to, const View<From, 1>* scratch, int32_t) {                         \
    each([](From x) { return static_cast<To>(x); }, *to, *from);                                                      \
    spoil(*scratch);                                                                                                  \
  }
CONVERSION_OVER(int32_t, int32_t, int8_t, int8_t)
CONVERSION_OVER(int64_t, int64_t, int32_t, int32_t)

#define BROADCASTS(name, T)                                                                                           \
  INSTRUCTION(broadcast_first_axis_align_2d_##name, 2)(const View<T, 2>* from, const View<T, 2>* to) {                \
    copy(*from, *to);                                                                                                 \
  }                                                                                                                   \
  INSTRUCTION(broadcast_last_axis_align_2d_##name, 3)                                                                 \
  (const View<T, 2>* from, const View<T, 2>* to, const View<T, 1>* scratch) {                                         \
    copy(*from, *to);                                                                                                 \
    spoil(*scratch);                                                                                                  \
  }                                                                                                                   \
  INSTRUCTION(deinterleave_channel_0_from_n_channels_1d_##name, 2)(const View<T, 1>* from, const View<T, 1>* to) {    \
    copy(*from, *to);                                                                                                 \
  }
EACH_NUMBER(BROADCASTS)

#define REDUCTION(op, F, prefix, name, T)                                                                             \
  INSTRUCTION(prefix##reduce_##op##_r_##name, 4)                                                                      \
  (const View<T, 1>* from, const View<T, 1>* to, const View<T, 1>* scratch, T start) {                                \
    reduce_r(F(), *from, *to, start);                                                                                 \
    spoil(*scratch);                                                                                                  \
  }                                                                                                                   \
  INSTRUCTION(prefix##reduce_##op##_ar_##name, 4)                                                                     \
  (const View<T, 2>* from, const View<T, 2>* to, const View<T, 1>* scratch, T start) {                                \
    reduce_ar(F(), *from, *to, start);                                                                                \
    spoil(*scratch);                                                                                                  \
  }                                                                                                                   \
  INSTRUCTION(prefix##reduce_##op##_ra_##name, 4)                                                                     \
  (const View<T, 2>* from, const View<T, 2>* to, const View<T, 1>* scratch, T start) {                                \
    reduce_ra(F(), *from, *to, start);                                                                                \
    spoil(*scratch);                                                                                                  \
  }
#define REDUCTIONS(name, T)                                                                                           \
  REDUCTION(sum, Add, , name, T) REDUCTION(max, Max, , name, T) REDUCTION(min, Min, , name, T)                        \
  REDUCTION(sum, Add, enablevc_, name, T) REDUCTION(max, Max, enablevc_, name, T)                                     \
  REDUCTION(min, Min, enablevc_, name, T)
EACH_NUMBER(REDUCTIONS)
