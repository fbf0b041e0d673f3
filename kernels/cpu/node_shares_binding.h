// What node_shares.py calls in the library of an op that reads packed weights.
#pragma once
#include "node_shares.h"

extern "C" __attribute__((visibility("default"))) void minimax_m2_bind_nodes(const minimax_m2::NodeView* view) {
  minimax_m2::nodes_in_force = view;
}

// Touches every page of [matrices, blocks, block_bytes] that begins in a block from a thread of the node that owns it.
extern "C" __attribute__((visibility("default"))) void minimax_m2_touch_first(char* data, int64_t matrices,
                                                                              int64_t blocks, int64_t block_bytes,
                                                                              int64_t page_bytes) {
  minimax_m2::NodeLoop loop(matrices, blocks);
#pragma omp parallel
  loop.run_own(1, [&](int64_t matrix, int64_t block, int64_t) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(data) + (matrix * blocks + block) * block_bytes;
    const uintptr_t page = static_cast<uintptr_t>(page_bytes), first = (begin + page - 1) / page * page;
    for (uintptr_t at = first; at < begin + static_cast<uintptr_t>(block_bytes); at += page)
      *reinterpret_cast<volatile char*>(at) = 0;
  });
}
