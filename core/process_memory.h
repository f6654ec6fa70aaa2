// What this process holds in memory, as the kernel counts it (proc(5), /proc/self/status).
#pragma once

#include <cstdint>

namespace shoal {

// VmRSS: bytes resident now. 0 where the kernel does not tell.
int64_t CurrentRssBytes();
// VmHWM: the most that was ever resident. 0 where the kernel does not tell.
int64_t PeakRssBytes();

}  // namespace shoal
