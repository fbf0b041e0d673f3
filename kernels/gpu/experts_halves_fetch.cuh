// The thread of each program that takes tickets and has the copy engine fill the ring, tile after tile.
#pragma once

#include "experts_halves.cuh"

namespace {

struct Maps {
  CUtensorMap w, x, last;
};

struct Fetch {
  const Experts& p;
  const Shared& s;
  const int rank;
  // Stages that have been filled, of the first so many their weight already; tickets that have been read, and those of
  // the products before this one.
  int stage = 0, count = 0, ahead = 0, tickets = 0, before = 0;
  uint32_t parity = 1;

  __device__ __forceinline__ Fetch(const Experts& p, const Shared& s) : p(p), s(s), rank(cluster::rank()) {}

  // The first program's thread takes a ticket for both. Whoever has one runs, so what it waits for is being made,
  // however many clusters run at once.
  __device__ __forceinline__ void take(int number) {
    if (rank != 0) return;
    const int at = number % kTickets;
    hopper::wait(s.read + 8 * at, (number / kTickets & 1) ^ 1);
    const int ticket = atomicAdd(p.taken, 1);
#pragma unroll
    for (int program = 0; program < kPrograms; program++)
      cluster::send(cluster::in_program(s.tickets + 4 * at, program), static_cast<uint32_t>(ticket),
                    cluster::in_program(s.given + 8 * at, program));
  }

  __device__ __forceinline__ int next_ticket() {
    hopper::arrive_and_expect(s.given + 8 * (tickets % kTickets), 4);
    return read_ticket(s, tickets) - before;
  }

  template <Mode mode>
  __device__ __forceinline__ void fetch_weight(const CUtensorMap* map, const Tile& tile, int step, int stage) {
#pragma unroll
    for (int block = 0; block < 2; block++) {
      const uint32_t to = s.w + stage * kWBytes + block * kBlockBytes;
      const int row = Product<mode>::row(p, tile.expert, tile.column, block);
      if (!tile.many) {
        hopper::copy_tile(to, map, step * kStep, row, s.full + 8 * stage);
      } else if (block == rank) {
        hopper::copy_tile_to_both(to, map, step * kStep, row, s.full + 8 * stage);
      }
    }
  }

  __device__ __forceinline__ void fetch_slots(const Maps& maps, const Tile& tile, int step) {
    const int rows = whole(tile.slots);
#pragma unroll 1
    for (int row = 0; row < rows; row += kBox) {
      const uint32_t to = s.x + stage * kXBytes + row * kRowBytes;
      const CUtensorMap* map = row + kBox <= rows ? &maps.x : &maps.last;
      if (tile.many) {
        hopper::copy_tile(to, map, step * kStep, tile.place + row, s.full + 8 * stage);
      } else if (row / kBox % kPrograms == rank) {
        hopper::copy_tile_to_both(to, map, step * kStep, tile.place + row, s.full + 8 * stage);
      }
    }
  }

  // Act is read by the copy engine once all have stored it.
  __device__ __forceinline__ void wait_for_act(const Tile& tile) {
    const int all = tickets_of<kGateUp>(p, p.counts[tile.expert]) * kPrograms * kWarpgroups;
    int made;
    do {
      asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(made) : "l"(p.made + tile.expert) : "memory");
    } while (made < all);
    asm volatile("fence.proxy.async.global;" ::: "memory");
  }

  // Begins with a ticket that has been read, and ends with the first that is the next product's.
  template <Mode mode>
  __device__ __forceinline__ int run(const Maps& maps, int ticket) {
    Tickets<mode> order;
    Tile tile;
    while (order.find(p, ticket, rank, tile)) {
      ticket_read(s, tickets);
      // The next is on its way early.
      take(++tickets);
      if (mode == kGateUp && tickets == 1) {
        // The weight's first tiles are on their way before x is waited for.
        ahead = min(kStages, Product<mode>::steps(p));
#pragma unroll 1
        for (int step = 0; step < ahead; step++) fetch_weight<mode>(&maps.w, tile, step, step);
        hopper::wait_for_predecessor();
      }
      const int bytes = kWBytes + whole(tile.slots) * kRowBytes, steps = Product<mode>::steps(p);
#pragma unroll 1
      for (int step = 0; step < steps; step++) {
        hopper::wait(s.empty + 8 * stage, parity);
        hopper::arrive_and_expect(s.full + 8 * stage, bytes);
        if (count++ >= ahead) fetch_weight<mode>(&maps.w, tile, step, stage);
        if (mode == kDown && step == 0) wait_for_act(tile);
        fetch_slots(maps, tile, step);
        if (++stage == kStages) stage = 0, parity ^= 1;
      }
      ticket = next_ticket();
    }
    before += order.first;
    return ticket - order.first;
  }
};

}  // namespace
