// Copies a run of bytes in whole registers.
#pragma once
#include <cstring>

#include "vector.h"

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

// Two registers at a time; integer moves keep every bit, NaN payloads included.
inline void copy_row(const char* from, char* to, int64_t bytes) {
  constexpr int64_t WIDTH = Float::N * sizeof(int32_t);
  int64_t i = 0;
  if ((reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to)) % alignof(int32_t) == 0) {
    for (; i + 2 * WIDTH <= bytes; i += 2 * WIDTH) {
      const Int first = load_int(reinterpret_cast<const int32_t*>(from + i));
      const Int second = load_int(reinterpret_cast<const int32_t*>(from + i + WIDTH));
      store_int(reinterpret_cast<int32_t*>(to + i), first);
      store_int(reinterpret_cast<int32_t*>(to + i + WIDTH), second);
    }
  }
  // A call, which whole registers do without.
  if (i < bytes) std::memcpy(to + i, from + i, bytes - i);
}

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
