// Experts of 16-bit weights on sm_90a, many slots: the weight's rows are the tensor core's, and an expert's slots are the
// columns, so that a tile is as wide as it has slots, and most experts are read once.
//
// One thread has the copy engine fetch 256 rows of the weight and an expert's slots into a ring in shared memory; two
// groups of four warps multiply, 64 channels a step, with sums in registers. Programs in pairs take tickets: gate's and
// up's tiles, then down's, which wait until their expert's act is there. The ring knows no tile's end.
#include "early_launch.cuh"
#include "experts_halves_fetch.cuh"
#include "tensor_map.cuh"

namespace {

// gate * sigmoid(gate) * up. The hardware's 2^x is off by 2 ulp, which rounding to 16 bits hides.
__device__ __forceinline__ float gated(float gate, float up) {
  float power, inverse;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(gate * -1.44269502f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + power));
  return gate * inverse * up;
}

template <class Half>
__device__ __forceinline__ uint32_t packed(float low, float high) {
  if constexpr (std::is_same_v<Half, __nv_bfloat16>) {
    const __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&two);
  } else {
    const __half2 two = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&two);
  }
}

// Writes four tiles of 8 by 8, turned: a lane gives the address of one column, and two of a row of each.
__device__ __forceinline__ void write_turned(uint32_t column, const uint32_t (&tiles)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(column), "r"(tiles[0]),
               "r"(tiles[1]), "r"(tiles[2]), "r"(tiles[3]) : "memory");
}

__device__ __forceinline__ float2 read_two(uint32_t address) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address) : "memory");
  return v;
}

__device__ __forceinline__ void meet(int warpgroup) {
  asm volatile("bar.sync %0, 128;" ::"r"(1 + warpgroup) : "memory");
}

template <class Half>
struct Multiply {
  const Experts& p;
  const Shared& s;
  // Alike in a warp, which the compiler cannot see.
  const int group = __shfl_sync(~0u, threadIdx.x / 128, 0), thread = threadIdx.x % 128, lane = threadIdx.x % 32;
  const int rank;
  // Tickets that have been read, and those of the products before this one.
  int stage = 0, tickets = 0, before = 0;
  uint32_t parity = 0, odd = 0;
  float sums[2][kCount];

  __device__ __forceinline__ Multiply(const Experts& p, const Shared& s) : p(p), s(s), rank(cluster::rank()) {}

  __device__ __forceinline__ void release(int stage) {
    __syncwarp();
    if (lane < kPrograms) arrive_in(lane, s.empty + 8 * stage);
  }

  // Returns the stage that was in turn.
  __device__ __forceinline__ int next_stage() {
    const int last = stage;
    if (++stage == kStages) stage = 0, parity ^= 1;
    return last;
  }

  template <int kSlots>
  __device__ __forceinline__ void multiply(int steps) {
    hopper::keep_in_place(sums[0]);
    hopper::keep_in_place(sums[1]);
    int last = 0;
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
      hopper::wait(s.full + 8 * stage, parity);
      const uint64_t a = hopper::matrix_at(s.w + stage * kWBytes + group * 64 * kRowBytes);
      const uint64_t b = hopper::matrix_at(s.x + stage * kXBytes);
      hopper::products_begin();
#pragma unroll
      // 16 channels further are 32 bytes further.
      for (int k = 0; k < kStep / 16; k++)
#pragma unroll
        for (int block = 0; block < 2; block++)
          hopper::product16<Half, kSlots>(sums[block], a + block * (kBlockBytes >> 4) + 2 * k, b + 2 * k, step | k);
      hopper::products_end<1>();
      if (step > 0) release(last);
      last = next_stage();
    }
    hopper::products_wait();
    hopper::keep_in_place(sums[0]);
    hopper::keep_in_place(sums[1]);
    release(last);
  }

  // The same of no slots.
  __device__ __forceinline__ void pass(int steps) {
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
      hopper::wait(s.full + 8 * stage, parity);
      release(next_stage());
    }
  }

  template <int kSlots = 16>
  __device__ __forceinline__ void multiply_as_wide_as(int slots, int steps) {
    if (slots <= kSlots) {
      multiply<kSlots>(steps);
    } else if constexpr (kSlots < kMost) {
      multiply_as_wide_as<kSlots + 16>(slots, steps);
    }
  }

  // The weights of the slots, where this warpgroup finds them.
  __device__ __forceinline__ void put_factors(const Tile& tile) {
    for (int i = thread; i < whole(tile.slots); i += 128) {
      float factor = 0.0f;
      if (i < tile.slots) {
        const int slot = p.sorted_slots[tile.place + i];
        factor = p.weights ? p.weights[slot] : __int_as_float(p.words[slot] << 16);
      }
      hopper::write(s.factors + (group * kMost + i) * 4, factor);
    }
  }

  // Sums of 16 slots, from the first on, as they are stored: a lane's are of two rows, and of two slots in each eight.
  template <Mode mode, int kFirst>
  __device__ __forceinline__ void turn(int block, uint32_t space) {
    float y[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const float a = sums[block][kFirst / 2 + i];
      y[i] = mode == kGateUp ? gated(a, sums[1][kFirst / 2 + i]) : a;
    }
    if constexpr (mode == kDown) {
#pragma unroll
      for (int eight = 0; eight < 2; eight++) {
        const float2 factor =
            read_two(s.factors + (group * kMost + kFirst + 8 * eight + 2 * (lane & 3)) * 4);
        y[4 * eight] *= factor.x, y[4 * eight + 1] *= factor.y;
        y[4 * eight + 2] *= factor.x, y[4 * eight + 3] *= factor.y;
      }
    }
    const uint32_t tiles[4] = {packed<Half>(y[0], y[1]), packed<Half>(y[2], y[3]), packed<Half>(y[4], y[5]),
                               packed<Half>(y[6], y[7])};
    // Runs of 16 bytes lie where no bank has two of them.
    const int slot = kFirst % kTurn + lane / 16 * 8 + (lane & 7), run = thread / 32 * 2 + (lane / 8 & 1);
    write_turned(space + slot * kRowBytes + ((run ^ (slot & 7)) << 4), tiles);
  }

  // Writes a tile's sums, 64 columns of 32 slots at a time, by two spaces in turn: what is written into one has been
  // read by all before they meet for the other.
  template <Mode mode, int kFirst = 0>
  __device__ __forceinline__ void store(const Tile& tile, int block) {
    if constexpr (kFirst < kMost) {
      if (kFirst >= tile.slots) return;
      const uint32_t space = s.turn + (2 * group + odd) * kTurnBytes;
      const int columns = Product<mode>::columns(p), run = thread & 7;
      const int column = tile.column + block * kBlock + group * 64 + 8 * run;
      int row[2];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int slot = kFirst + thread / 8 + 16 * i;
        const bool there = slot < tile.slots && column < columns;
        row[i] = !there ? -1 : mode == kGateUp ? tile.place + slot : p.sorted_slots[tile.place + slot];
      }
      turn<mode, kFirst>(block, space);
      if (kFirst + 16 < tile.slots) turn<mode, kFirst + 16>(block, space);
      meet(group);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int slot = thread / 8 + 16 * i;
        const uint4 eight = hopper::read_16_bytes(space + slot * kRowBytes + ((run ^ (slot & 7)) << 4));
        Half* to = static_cast<Half*>(mode == kGateUp ? p.act : p.rows) + static_cast<long long>(row[i]) * columns + column;
        if (row[i] >= 0) *reinterpret_cast<uint4*>(to) = eight;
      }
      odd ^= 1;
      store<mode, kFirst + kTurn>(tile, block);
    }
  }

  // Says that this warpgroup's part of a tile of act is stored, to the copy engines of others.
  __device__ __forceinline__ void act_stored(const Tile& tile) {
    asm volatile("fence.proxy.async.global;" ::: "memory");
    meet(group);
    // What others stored before they met is released with it.
    if (thread == 0) asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(p.made + tile.expert) : "memory");
  }

  __device__ __forceinline__ int next_ticket() { return __shfl_sync(~0u, read_ticket(s, tickets), 0) - before; }

  // Begins with a ticket that has been read, and ends with the first that is the next product's.
  template <Mode mode>
  __device__ __forceinline__ int run(int ticket) {
    const int steps = Product<mode>::steps(p);
    Tickets<mode> order;
    Tile tile;
    while (order.find(p, ticket, rank, tile)) {
      if (lane == 0) ticket_read(s, tickets);
      tickets++;
      if (tile.slots == 0) {
        pass(steps);
      } else {
        if constexpr (mode == kDown) put_factors(tile);
        multiply_as_wide_as(tile.slots, steps);
        // The spaces are free, and the factors there.
        meet(group);
#pragma unroll
        for (int block = 0; block < Product<mode>::kColumns / kBlock; block++) store<mode>(tile, block);
      }
      if constexpr (mode == kGateUp) act_stored(tile);
      ticket = next_ticket();
    }
    before += order.first;
    return ticket - order.first;
  }
};

template <class Half>
__global__ void __cluster_dims__(kPrograms) __launch_bounds__(kThreads, 1)
    experts_halves(const __grid_constant__ Maps gate_up, const __grid_constant__ Maps down,
                   const __grid_constant__ Experts p) {
  extern __shared__ uint8_t bytes[];
  const Shared s = shared_at(bytes);
  // Sums take more registers than a program's share: warps that fetch leave theirs.
  if (threadIdx.x >= kConsumers) {
    hopper::give_registers<40>();
    if (threadIdx.x == kConsumers) {
      Fetch fetch(p, s);
      fetch.take(0);
      int ticket = fetch.next_ticket();
      ticket = fetch.run<kGateUp>(gate_up, ticket);
      fetch.run<kDown>(down, ticket);
      hopper::let_next_start();
    }
    __syncwarp();
  } else {
    hopper::take_registers<232>();
    hopper::wait_for_predecessor();
    Multiply<Half> multiply(p, s);
    int ticket = multiply.next_ticket();
    ticket = multiply.template run<kGateUp>(ticket);
    multiply.template run<kDown>(ticket);
  }
  // Nobody ends while the other still copies and arrives there.
  cluster::arrive(), cluster::wait_for_all();
}

// Weights lie as an expert's rows after the other's; all rows are whole steps of channels.
bool maps_of(Maps* maps, const void* weight, long long weight_rows, const void* x, long long places, int channels) {
  const auto map = [&](CUtensorMap* to, const void* rows, long long count, int box) {
    return rows_map(to, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, rows, count, channels, channels, box);
  };
  return map(&maps->w, weight, weight_rows, kBlock) && map(&maps->x, x, places, kBox) &&
         map(&maps->last, x, places, kLastBox);
}

template <class Half>
int launched(const Maps& gate_up, const Maps& down, const Experts& p, int programs, cudaStream_t stream) {
  auto* kernel = experts_halves<Half>;
  // At every launch: it holds for the current device only.
  const cudaError_t allowed = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (allowed != cudaSuccess) return allowed;
  const EarlyLaunch how(programs / kPrograms * kPrograms, kThreads, kBytes, stream);
  return cudaLaunchKernelEx(&how.config, kernel, gate_up, down, p);
}

}  // namespace

// Launches the kernel for bfloat16 (kind 0) or float16 (1); x has a row a place. Returns a cudaError_t.
extern "C" int minimax_m2_experts_halves(int kind, const void* x, long long places, const void* w13, const void* w2,
                                         const void* arguments, int programs, void* stream) {
  const Experts& p = *static_cast<const Experts*>(arguments);
  const auto at = static_cast<cudaStream_t>(stream);
  Maps gate_up, down;
  if (!maps_of(&gate_up, w13, 2ll * p.num_experts * p.width, x, places, p.hidden) ||
      !maps_of(&down, w2, static_cast<long long>(p.num_experts) * p.hidden, p.act, places, p.width))
    return cudaErrorInvalidValue;
  return kind == 0 ? launched<__nv_bfloat16>(gate_up, down, p, programs, at)
                   : launched<__half>(gate_up, down, p, programs, at);
}
