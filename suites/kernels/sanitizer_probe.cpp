// A kernel with planted faults, for test_sanitizers.py: compiled as every kernel is.
#include "vector.h"

namespace v = minimax_m2::MINIMAX_M2_ISA;

// Reads a whole vector although only n values are there.
extern "C" __attribute__((visibility("default"))) float probe_sum(const float* x, int n, int whole) {
  return v::reduce_add(whole ? v::load(x) : v::load(x, n));
}

// Keeps a vector in a local variable beside an array that a stack protector watches.
extern "C" __attribute__((visibility("default"))) float probe_local(const float* x, int n) {
  char text[24];
  v::Float held = v::load(x, n);
  asm volatile("" : : "r"(text), "r"(&held) : "memory");
  return v::reduce_add(held);
}

// Shifts by as many places as a caller says.
extern "C" __attribute__((visibility("default"))) int probe_shift(int x, int places) { return x << places; }
