// What the kernels need of a GPU, under names that a host compiler understands as well: nvcc takes what
// stands here, any other compiler the execution model of ../emulator/device.h.
#pragma once

#include <cstdint>

namespace gpu {

// N values that are loaded and stored at once.
template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  T at[N];
};

}  // namespace gpu

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define GPU_DEVICE __device__ __forceinline__
// At most so many threads of a block, at least so many blocks of a multiprocessor.
#define GPU_KERNEL(THREADS, BLOCKS) __global__ void __launch_bounds__(THREADS, BLOCKS)
#define GPU_UNROLL _Pragma("unroll")
#define GPU_LOOP _Pragma("unroll 1")  // its body once

namespace gpu {

using bfloat16 = __nv_bfloat16;
using float16 = __half;

GPU_DEVICE float widened(bfloat16 a) { return __bfloat162float(a); }
GPU_DEVICE float widened(float16 a) { return __half2float(a); }
GPU_DEVICE void narrow(float a, bfloat16& to) { to = __float2bfloat16_rn(a); }
GPU_DEVICE void narrow(float a, float16& to) { to = __float2half_rn(a); }

extern __shared__ __align__(16) char shared_memory[];  // of the size that the launch gives

template <class T>
GPU_DEVICE T& shared() {
  return *reinterpret_cast<T*>(__builtin_assume_aligned(shared_memory, 16));
}

GPU_DEVICE void barrier() { __syncthreads(); }

// The value of lane `lane ^ bits` of the warp; all lanes take part.
template <class T>
GPU_DEVICE T exchange(T value, int bits) {
  return __shfl_xor_sync(0xffffffffu, value, bits);
}

GPU_DEVICE unsigned ballot(bool value) { return __ballot_sync(0xffffffffu, value); }
GPU_DEVICE int count_bits(unsigned bits) { return __popc(bits); }

// Some threads of a launch, of any block, may write 1.
GPU_DEVICE void raise(int* flag) { atomicExch(flag, 1); }

// BYTES from global to shared memory, zeros where not `valid`; there after `wait` and a barrier.
template <int BYTES>
GPU_DEVICE void copy_async(void* to, const void* from, bool valid) {
  static_assert(BYTES == 16 || BYTES == 8 || BYTES == 4);
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  const int size = valid ? BYTES : 0;
  if constexpr (BYTES == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
                 "r"(size)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(address), "l"(from),
                 "r"(size), "n"(BYTES)
                 : "memory");
  }
}

GPU_DEVICE void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until no more than LEFT of this thread's commits are on their way.
template <int LEFT>
GPU_DEVICE void wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// Approximate, see the PTX manual: errors of 1 and of 2 in the last place, of 2^-22 of the logarithm
// (between 1/2 and 2 of 1). Denormal numbers are 0.
GPU_DEVICE float reciprocal(float a) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
  return r;
}
GPU_DEVICE float inverse_root(float a) {
  float r;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
  return r;
}
GPU_DEVICE float log2(float a) {
  float r;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
  return r;
}

}  // namespace gpu

#else
#include "../emulator/device.h"
#endif

namespace gpu {

GPU_DEVICE double reciprocal(double a) { return 1 / a; }
GPU_DEVICE double inverse_root(double a) { return 1 / ::sqrt(a); }
GPU_DEVICE double log2(double a) { return ::log2(a); }
// A number wins against NaN.
GPU_DEVICE float least(float a, float b) { return ::fminf(a, b); }
GPU_DEVICE double least(double a, double b) { return ::fmin(a, b); }
GPU_DEVICE float most(float a, float b) { return ::fmaxf(a, b); }
GPU_DEVICE double most(double a, double b) { return ::fmax(a, b); }
GPU_DEVICE float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
GPU_DEVICE double fma(double a, double b, double c) { return ::fma(a, b, c); }
GPU_DEVICE float size(float a) { return ::fabsf(a); }
GPU_DEVICE double size(double a) { return ::fabs(a); }
GPU_DEVICE float exp(float a) { return ::expf(a); }
GPU_DEVICE double exp(double a) { return ::exp(a); }

GPU_DEVICE float widened(float a) { return a; }
GPU_DEVICE double widened(double a) { return a; }
GPU_DEVICE void narrow(float a, float& to) { to = a; }
GPU_DEVICE void narrow(float a, double& to) { to = a; }
GPU_DEVICE void narrow(double a, float& to) { to = static_cast<float>(a); }
GPU_DEVICE void narrow(double a, double& to) { to = a; }
GPU_DEVICE void narrow(double a, bfloat16& to) { narrow(static_cast<float>(a), to); }
GPU_DEVICE void narrow(double a, float16& to) { narrow(static_cast<float>(a), to); }

template <class T>
constexpr GPU_DEVICE T infinity() {
  return static_cast<T>(__builtin_huge_val());
}

}  // namespace gpu
