// What is asked of the CUDA runtime beside launches.
#pragma once

namespace fused_mi {

// Of the current device.
int multiprocessors();

// Whether the driver serves the runtime that this library was built with: the versions of both, as
// 13000 for 13.0; 0 where there is no driver.
void versions(int& driver, int& runtime);

}  // namespace fused_mi
