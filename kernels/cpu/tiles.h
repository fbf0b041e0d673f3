// The tile registers of a thread: eight of sixteen rows of 64 bytes.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace minimax_m2::MINIMAX_M2_ISA {
namespace {

constexpr int SIDE = 16;  // rows of a tile, and words in one
constexpr int64_t TILE = SIDE * SIDE;
constexpr int64_t ROW_BYTES = SIDE * sizeof(uint32_t);

// What _tile_loadconfig reads: palette 1, eight tiles of sixteen rows of 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE};
};

// GCC's intrinsics do not tell the compiler that a tile is read from memory.
inline void publish(const void* written) { asm volatile("" : : "r"(written) : "memory"); }

// Holds the registers' shapes while it lives.
class Tiles {
 public:
  Tiles() {
    const TileConfig config;
    publish(&config);
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

}  // namespace
}  // namespace minimax_m2::MINIMAX_M2_ISA
