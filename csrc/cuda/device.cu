#include "device.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include <cstring>
#endif

namespace fused_mi {

#ifdef __CUDACC__

int multiprocessors() {
  int device = 0, count = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

const char* zero(void* to, int64_t bytes, void* stream) {
  if (bytes == 0) return nullptr;
  const cudaError_t error =
      cudaMemsetAsync(to, 0, static_cast<size_t>(bytes), static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

void versions(int& driver, int& runtime) {
  driver = runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
}

#else

int multiprocessors() { return 1; }

const char* zero(void* to, int64_t bytes, void*) {
  if (bytes > 0) std::memset(to, 0, static_cast<size_t>(bytes));
  return nullptr;
}

void versions(int& driver, int& runtime) { driver = runtime = 0; }

#endif

}  // namespace fused_mi
