// Where a token's cosines and sines are found. Strides count elements.
#pragma once
#include "dtype.h"

namespace minimax_m2 {

struct RotationTable {
  const void* cos_sin;  // [P, R], cosines then sines
  int64_t stride;
  Dtype dtype;
  int64_t num_positions;  // P
  const void* positions;  // [T]
  Dtype positions_dtype;
  int rotary_dim;  // R
};

}  // namespace minimax_m2
