#include "device.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#endif

namespace fused_mi {

#ifdef __CUDACC__

int multiprocessors() {
  int device = 0, count = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

void versions(int& driver, int& runtime) {
  driver = runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
}

#else

int multiprocessors() { return 1; }

void versions(int& driver, int& runtime) { driver = runtime = 0; }

#endif

}  // namespace fused_mi
