// Exposes node_shares.h to test_node_shares.py: which node's threads take which units.
#include "node_shares.h"

using namespace minimax_m2;

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void probe_bind(const NodeView* view) { nodes_in_force = view; }

// For each unit [matrix, block, part] the node of the thread that took it last, and how often it was taken.
EXPORT void probe_loop(int64_t matrices, int64_t blocks, int64_t parts, int threads, int64_t at_once, int own,
                       int32_t* node, int32_t* times) {
  NodeLoop loop(matrices, blocks, parts);
#pragma omp parallel num_threads(threads)
  {
    const auto take = [&](int64_t matrix, int64_t block, int64_t part) {
      const int64_t unit = (matrix * blocks + block) * parts + part;
      node[unit] = static_cast<int32_t>(node_of_this_thread(node_count()));
#pragma omp atomic
      ++times[unit];
    };
    own ? loop.run_own(at_once, take) : loop.run(at_once, take);
  }
}
