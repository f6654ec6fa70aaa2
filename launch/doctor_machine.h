// The sections of `shoal doctor` that one process finds out alone.
#pragma once

#include "launch/doctor_report.h"

namespace shoal {

// Of Shoal, the compiler and the libraries in use. A library whose loaded version is not the one
// compiled against is a warning.
ReportSection VersionsSection();

// Processor, memory, /dev/shm, limits.
ReportSection MachineSection();

// Those that this process sees. Starts CUDA, and so threads.
ReportSection GpusSection();

// Matrix products (float32, bfloat16; one thread and all) and memory, measured now: about two
// seconds.
ReportSection RatesSection();

// Processors this process may run on.
int UsableCores();

}  // namespace shoal
