// Words that the GPUs of a host write into each other's boxes. mailbox.py says why this is enough.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

constexpr int kMostRanks = 8;

struct Mailbox {
  int64_t boxes[kMostRanks];    // address of each rank's box, as this rank sees it
  int* turns;                   // how often each row was summed; nobody else sees it
  unsigned long long* missing;  // 0, or whom a wait was given up for
  long long patience;           // clock cycles
  int rank, ranks, rows, words, place;
};

namespace mailbox {

struct Pair {
  uint64_t first, second;
};

__device__ __forceinline__ uint64_t word(uint32_t payload, uint32_t flag) {
  return static_cast<uint64_t>(flag) << 32 | payload;
}

__device__ __forceinline__ uint32_t flag_of(uint64_t word) { return static_cast<uint32_t>(word >> 32); }

// What stands beside every word of this turn.
__device__ __forceinline__ uint32_t flag(const Mailbox& m, uint32_t turn) {
  return static_cast<uint32_t>(m.place) << 8 | (turn & 0xff);
}

// Where ``sender`` writes a row into the box of ``owner``.
__device__ __forceinline__ uint64_t* row_of(const Mailbox& m, int owner, int sender, uint32_t turn, int row) {
  const int64_t at = ((static_cast<int64_t>(turn & 1) * m.ranks + sender) * m.rows + row) * m.words;
  return reinterpret_cast<uint64_t*>(m.boxes[owner]) + at;
}

// Each of the two words is stored, and loaded, whole.
__device__ __forceinline__ void send(uint64_t* at, uint32_t first, uint32_t second, uint32_t flag) {
  asm volatile("st.relaxed.sys.global.v2.b64 [%0], {%1, %2};" ::"l"(at), "l"(word(first, flag)), "l"(word(second, flag))
               : "memory");
}

__device__ __forceinline__ Pair look(const uint64_t* at) {
  Pair found;
  asm volatile("ld.relaxed.sys.global.v2.b64 {%0, %1}, [%2];" : "=l"(found.first), "=l"(found.second) : "l"(at) : "memory");
  return found;
}

// After one wait that was given up no other is begun.
__device__ __forceinline__ long long patience(const Mailbox& m) {
  return *static_cast<volatile unsigned long long*>(m.missing) == 0 ? m.patience : 0;
}

// Notes the first wait that is given up: for whom, in which sum, and what lies there instead.
__device__ __forceinline__ void give_up(const Mailbox& m, int sender, uint32_t turn, uint32_t found) {
  const uint64_t elsewhere = (found & 0xff) == (turn & 0xff);
  const uint64_t place = static_cast<uint32_t>(m.place) & 0xffffff;
  atomicCAS(m.missing, 0ULL, elsewhere << 60 | static_cast<uint64_t>(sender + 1) << 56 | place << 32 | found);
}

}  // namespace mailbox
