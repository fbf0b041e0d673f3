// Programs of a cluster on sm_90 and later: each other's shared memory, and barriers that count the bytes that arrive.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace cluster {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ int size() {
  int programs;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(programs));
  return programs;
}

// Of the whole launch, counted by their first dimension.
__device__ __forceinline__ int index() {
  int found;
  asm("mov.u32 %0, %%clusterid.x;" : "=r"(found));
  return found;
}

__device__ __forceinline__ int rank() {
  int own;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(own));
  return own;
}

// A barrier that is passed once, when so many bytes have been stored beside it: one thread makes it.
__device__ __forceinline__ void expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Every thread arrives once it has begun, and waits before it stores into another program: nobody stores into one that
// has not begun.
__device__ __forceinline__ void arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void wait_for_all() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

__device__ __forceinline__ uint32_t in_program(uint32_t address, int program) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(program));
  return there;
}

// Stores into another program's memory; its barrier counts the bytes.
__device__ __forceinline__ void send(uint32_t to, float4 x, uint32_t barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
               "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w), "r"(barrier) : "memory");
}

__device__ __forceinline__ void send(uint32_t to, float2 x, uint32_t barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(to),
               "f"(x.x), "f"(x.y), "r"(barrier) : "memory");
}

__device__ __forceinline__ void send(uint32_t to, uint32_t x, uint32_t barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(to), "r"(x),
               "r"(barrier) : "memory");
}

// Waits for the phase of a barrier, and sees what other programs stored before it ended.
__device__ __forceinline__ void wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n\t.reg .pred done;\n"
      "again:\n\t"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n\t"
      "@done bra over;\n\tbra again;\n"
      "over:\n\t}" ::"r"(barrier), "r"(parity) : "memory");
}

}  // namespace cluster
