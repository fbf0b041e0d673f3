// AMX tiles in plain C++, so that a tile unit's arithmetic can be run where the processor has none: included before the
// unit, it takes the place of the intrinsics. Products of pairs are added in the order of the instruction, unfused.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_loadconfig
#undef _tile_release

namespace emulated {

inline thread_local uint32_t tile[8][16][16];
inline thread_local bool configured = false;

inline void require_configured() {
  if (!configured) __builtin_trap();
}
inline void load(int t, const void* base, size_t stride) {
  require_configured();
  for (int row = 0; row < 16; ++row) std::memcpy(tile[t][row], static_cast<const char*>(base) + row * stride, 64);
}
inline void store(int t, void* base, size_t stride) {
  require_configured();
  for (int row = 0; row < 16; ++row) std::memcpy(static_cast<char*>(base) + row * stride, tile[t][row], 64);
}
inline float value(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline void multiply(int c, int a, int b) {
  require_configured();
  for (int m = 0; m < 16; ++m)
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < 16; ++n) {
        float sum = value(tile[c][m][n]);
        sum += value(tile[a][m][k] << 16) * value(tile[b][k][n] << 16);
        sum += value(tile[a][m][k] & 0xffff0000u) * value(tile[b][k][n] & 0xffff0000u);
        std::memcpy(&tile[c][m][n], &sum, sizeof sum);
      }
}

}  // namespace emulated

#define _tile_zero(t) std::memset(emulated::tile[t], 0, sizeof emulated::tile[t])
#define _tile_loadd(t, base, stride) emulated::load(t, base, stride)
#define _tile_stored(t, base, stride) emulated::store(t, base, stride)
#define _tile_dpbf16ps(c, a, b) emulated::multiply(c, a, b)
#define _tile_loadconfig(config) (static_cast<void>(config), emulated::configured = true)
#define _tile_release() (emulated::configured = false)
