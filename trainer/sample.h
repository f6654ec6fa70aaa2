// Text from the model that a run has just exported.
#pragma once

#include "core/file_system.h"
#include "core/recipe.pb.h"
#include "core/status.h"
#include "trainer/task.h"

namespace shoal {

// Continues each of the section's prompts with the exported model, prints the texts to stdout and
// writes them to paths.samples. Nothing to do without prompts. The model is read whole, on this
// rank alone: to `device`, or to host memory if the device has no room for what several held.
absl::Status PrintSamples(const SampleSection& section, uint64_t seed, FileSystem& files,
                          const RunPaths& paths, at::Device device);

}  // namespace shoal
