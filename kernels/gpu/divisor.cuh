// Division by a number that the host knows: a multiplication and a shift, where the processor has no division.
#pragma once

namespace {

struct Divisor {
  unsigned magic, shift;
};

// x / number for x from 0 to 2^31 - 1.
__device__ __forceinline__ int quotient(int x, Divisor by) {
  return static_cast<int>(static_cast<unsigned long long>(static_cast<unsigned>(x)) * by.magic >> by.shift);
}

}  // namespace
