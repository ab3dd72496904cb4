// A launch on a stream, by the CUDA runtime or in the emulator.
#pragma once

#include "gpu.h"

#include <cstddef>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include "../emulator/model.h"
#endif

namespace fused_mi {

// nullptr, or what is wrong. Of a grid of no block nothing is launched.
template <class Kernel, class Arguments>
const char* launch(
    Kernel kernel, int64_t blocks, int threads, size_t shared, void* stream,
    const Arguments& arguments) {
  if (blocks == 0) return nullptr;
  if (blocks > 0x7fffffff) return "too many blocks for one launch";
  const unsigned count = static_cast<unsigned>(blocks);
#ifdef __CUDACC__
  if (shared > 48 << 10) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  kernel<<<count, threads, shared, static_cast<cudaStream_t>(stream)>>>(arguments);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
#else
  static_cast<void>(stream);
  ::emulator::run(
      {count}, {static_cast<unsigned>(threads)}, shared, [&] { kernel(arguments); });
  return nullptr;
#endif
}

}  // namespace fused_mi
