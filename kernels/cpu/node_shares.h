// Whose memory a block of packed weights lies in, and the loops over blocks that follow from it.
//
// Each memory node of a machine owns a share of every matrix's blocks: packing has a thread of that node touch them first
// (node_shares.py), so that Linux keeps them there, and kernels have the node's threads read them first. A thread that has
// nothing left of its own node helps another: where a block is read changes the speed, never a result.
#pragma once
#include <omp.h>
#ifdef __linux__
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace minimax_m2 {

constexpr int MAX_NODES = 16;  // more share what these own
constexpr int MAX_NODE_IDS = 64;

// What node_shares.py knows of the machine.
struct NodeView {
  int32_t count;
  int32_t pretended;               // threads are dealt out to nodes in their order, wherever they run
  int32_t index_of[MAX_NODE_IDS];  // by the number that Linux has for a node
};

// Data, which all objects of a library share; null is a machine of one node.
inline const NodeView* nodes_in_force = nullptr;

// The first of `blocks` that a node owns; the next node's first is one past its last.
constexpr int64_t share_begin(int64_t blocks, int64_t nodes, int64_t node) { return blocks * node / nodes; }

namespace {

inline int64_t node_count() { return nodes_in_force ? nodes_in_force->count : 1; }

inline int64_t node_of_this_thread(int64_t nodes) {
  if (nodes == 1) return 0;
  if (nodes_in_force->pretended) return omp_get_thread_num() * nodes / omp_get_num_threads();
#ifdef __linux__
  unsigned cpu = 0, node = 0;
  if (getcpu(&cpu, &node) == 0 && node < MAX_NODE_IDS) return nodes_in_force->index_of[node];
#endif
  return 0;
}

// Units of work, `parts` for each block of each matrix, which the threads of a team take in runs. It is made before the
// team is.
class NodeLoop {
 public:
  NodeLoop(int64_t matrices, int64_t blocks, int64_t parts = 1)
      : matrices_(matrices), blocks_(blocks), parts_(parts), nodes_(node_count()) {}

  // Every thread calls this; it returns when no unit is left to take, while others may still be at work.
  template <class Body>
  void run(int64_t at_once, Body&& body) {
    const int64_t own = node_of_this_thread(nodes_);
    for (int64_t i = 0; i < nodes_; ++i) take((own + i) % nodes_, at_once, body);
  }

  // The same with the units of the thread's own node alone.
  template <class Body>
  void run_own(int64_t at_once, Body&& body) {
    take(node_of_this_thread(nodes_), at_once, body);
  }

 private:
  template <class Body>
  void take(int64_t node, int64_t at_once, Body& body) {
    const int64_t begin = share_begin(blocks_, nodes_, node);
    const int64_t each = (share_begin(blocks_, nodes_, node + 1) - begin) * parts_, units = matrices_ * each;
    std::atomic<int64_t>& next = next_[node].taken;
    for (int64_t u; (u = next.fetch_add(at_once, std::memory_order_relaxed)) < units;)
      for (const int64_t end = std::min(units, u + at_once); u < end; ++u)
        body(u / each, begin + u % each / parts_, u % parts_);
  }

  struct alignas(64) Counter {
    std::atomic<int64_t> taken{0};
  };

  const int64_t matrices_, blocks_, parts_, nodes_;
  Counter next_[MAX_NODES];
};

}  // namespace
}  // namespace minimax_m2
