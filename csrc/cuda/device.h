// What is asked of the CUDA runtime beside launches.
#pragma once

#include <cstdint>

namespace fused_mi {

// Of the current device.
int multiprocessors();

// nullptr, or what is wrong.
const char* zero(void* to, int64_t bytes, void* stream);

// Whether the driver serves the runtime that this library was built with: the versions of both, as
// 13000 for 13.0; 0 where there is no driver.
void versions(int& driver, int& runtime);

}  // namespace fused_mi
