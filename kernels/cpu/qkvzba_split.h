// Arguments of the qkvzba_split kernel: rows are runs of bytes to copy. The contiguous layout is one group of all heads.
#pragma once
#include "dtype.h"

namespace minimax_m2 {

struct QkvzbaSplitArgs {
  const char* qkvz;  // [T, groups, q | k | v | z]
  int64_t qkvz_stride_bytes;
  const char* ba;  // [T, groups, b | a]
  int64_t ba_stride_bytes;
  char* qkv;  // [T, q of all groups | k | v], contiguous like the other outputs
  char* z;
  char* b;
  char* a;
  int64_t groups;
  int64_t key_bytes;    // of q, or k, of one group
  int64_t value_bytes;  // of v, or z
  int64_t gate_bytes;   // of b, or a
  int64_t num_tokens;
};

}  // namespace minimax_m2

MINIMAX_M2_KERNEL(void, qkvzba_split, const QkvzbaSplitArgs&)
