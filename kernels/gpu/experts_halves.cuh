// What both products of 16-bit experts share: their arguments, which slots and columns a program makes, what feeds it.
#pragma once

#include "cluster.cuh"
#include "hopper.cuh"
#include "products_16.cuh"

namespace {

// Channels of a step: a row of the copy engine's swizzle.
constexpr int kStep = 64, kRowBytes = 128;
// Rows of the weight that are fetched at a time, two times a step; rows of x, most of them and the last.
constexpr int kBlock = 128, kBox = 32, kLastBox = 16;
// Programs of a cluster: what both multiply, each fetches a half of.
constexpr int kPrograms = 2;
constexpr int kWarpgroups = 2, kConsumers = 128 * kWarpgroups, kThreads = kConsumers + 128;
// Slots of a tile, whose sums a thread has two of: gate's and up's, or of two blocks of columns.
constexpr int kMost = 160, kCount = kMost / 2, kStages = 4;
constexpr int kBlockBytes = kBlock * kRowBytes, kWBytes = 2 * kBlockBytes, kXBytes = kMost * kRowBytes;
// Slots that leave a warpgroup's registers at a time, and the bytes that they pass through, twice.
constexpr int kTurn = 32, kTurnBytes = kTurn * kRowBytes;
constexpr int kTickets = 2;
// Swizzled tiles begin at multiples of 1024 bytes.
constexpr int kBytes = 1024 + kStages * (kWBytes + kXBytes) + kWarpgroups * (2 * kTurnBytes + kMost * 4) +
                       16 * kStages + 24 * kTickets;
static_assert(kMost % kBox == 0 && kBytes <= 227 * 1024);

enum Mode { kGateUp, kDown };

// Slots lie in the order of moe_align with blocks of 16.
struct Experts {
  const int* sorted_slots;
  const int* counts;     // [experts] slots
  const int* words;      // of pack_routing, whose lower halves are weights, where these are null
  const float* weights;  // [slots]
  void* act;             // [places, width]
  void* rows;            // [slots, hidden]
  int* taken;            // tickets that clusters have taken; zero before
  int* made;             // [experts] warpgroups' tiles of act that are stored; zero before
  int hidden, width, num_experts;
};

template <Mode mode>
struct Product {
  // Columns of a program's tile.
  static constexpr int kColumns = mode == kGateUp ? kBlock : 2 * kBlock;

  static __device__ __forceinline__ int columns(const Experts& p) { return mode == kGateUp ? p.width : p.hidden; }
  static __device__ __forceinline__ int steps(const Experts& p) { return (mode == kGateUp ? p.hidden : p.width) / kStep; }
  // The weight's row of a column, in the first and the second block that is fetched.
  static __device__ __forceinline__ int row(const Experts& p, int expert, int column, int block) {
    if (mode == kGateUp) return (2 * expert + block) * p.width + column;
    return expert * p.hidden + column + block * kBlock;
  }
};

__device__ __forceinline__ constexpr int whole(int slots) { return (slots + 15) & ~15; }

// Tickets of an expert with so many slots, one for both programs of a cluster. Few slots are one tile: the programs
// multiply them by neighbouring columns. Of many each has its own, and both multiply them by the same columns.
template <Mode mode>
__device__ __forceinline__ int tickets_of(const Experts& p, int slots) {
  const int tiles = (Product<mode>::columns(p) + Product<mode>::kColumns - 1) / Product<mode>::kColumns;
  if (slots <= kMost) return slots > 0 ? (tiles + 1) / 2 : 0;
  return (slots + 2 * kMost - 1) / (2 * kMost) * tiles;
}

struct Tile {
  int expert, place, slots;  // where its slots begin, and how many there are
  int column;
  bool many;
};

// Tickets in the order of experts: neighbours read the same slots at once.
template <Mode mode>
struct Tickets {
  int expert = 0, first = 0, place = 0;

  // The tile of this program by a ticket; tickets never fall. False where there is none: ``first`` then counts them all.
  __device__ __forceinline__ bool find(const Experts& p, int ticket, int rank, Tile& tile) {
    using P = Product<mode>;
    for (; expert < p.num_experts; expert++) {
      const int slots = p.counts[expert], tickets = tickets_of<mode>(p, slots);
      if (ticket < first + tickets) {
        const int at = ticket - first;
        tile.expert = expert, tile.many = slots > kMost;
        if (tile.many) {
          // Slots are dealt evenly.
          const int tiles = (P::columns(p) + P::kColumns - 1) / P::kColumns, parts = tickets / tiles * kPrograms;
          const int each = whole((slots + parts - 1) / parts), from = (at / tiles * kPrograms + rank) * each;
          tile.place = place + from, tile.slots = max(0, min(each, slots - from));
          tile.column = at % tiles * P::kColumns;
        } else {
          tile.place = place, tile.slots = slots;
          tile.column = (kPrograms * at + rank) * P::kColumns;
        }
        return true;
      }
      first += tickets, place += whole(slots);
    }
    return false;
  }
};

// A program's shared memory, in bytes of the shared window: the ring, where sums turn, the slots' weights, tickets.
struct Shared {
  uint32_t w, x, turn, factors, full, empty, tickets, given, read;
};

__device__ __forceinline__ Shared shared_at(const uint8_t* bytes) {
  Shared s;
  s.w = (hopper::shared_address(bytes) + 1023) & ~1023u;
  s.x = s.w + kStages * kWBytes;
  s.turn = s.x + kStages * kXBytes;
  s.factors = s.turn + kWarpgroups * 2 * kTurnBytes;
  s.full = s.factors + kWarpgroups * kMost * 4;
  s.empty = s.full + 8 * kStages;
  s.given = s.empty + 8 * kStages;
  s.read = s.given + 8 * kTickets;
  s.tickets = s.read + 8 * kTickets;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; stage++) {
      hopper::barrier_init(s.full + 8 * stage, 1);
      // All warps that multiply what may come from here.
      hopper::barrier_init(s.empty + 8 * stage, 4 * kWarpgroups * kPrograms);
    }
    for (int i = 0; i < kTickets; i++) {
      hopper::barrier_init(s.given + 8 * i, 1);
      // These, and the threads that fetch.
      hopper::barrier_init(s.read + 8 * i, (4 * kWarpgroups + 1) * kPrograms);
    }
    hopper::barriers_made();
  }
  __syncthreads();
  // Nobody writes into a program that has not begun.
  cluster::arrive(), cluster::wait_for_all();
  return s;
}

// What has been read or multiplied here may be written anew.
__device__ __forceinline__ void arrive_in(int program, uint32_t barrier) {
  hopper::arrive_at(cluster::in_program(barrier, program));
}

// Reads the next ticket; ``count`` have been read before.
__device__ __forceinline__ int read_ticket(const Shared& s, int count) {
  const int at = count % kTickets;
  int ticket;
  cluster::wait(s.given + 8 * at, count / kTickets & 1);
  asm volatile("ld.shared.s32 %0, [%1];" : "=r"(ticket) : "r"(s.tickets + 4 * at) : "memory");
  return ticket;
}

// Once a ticket's value has been used.
__device__ __forceinline__ void ticket_read(const Shared& s, int count) { arrive_in(0, s.read + 8 * (count % kTickets)); }

}  // namespace
