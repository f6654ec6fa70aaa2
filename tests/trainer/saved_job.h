// Checkpoints of training jobs.
#pragma once

#include <vector>

#include "tests/trainer/training_job.h"

namespace shoal {

// Each trains and saves, and each reads what each has saved: to the last bit. Devices count too.
void ExpectEachReadsAll(const std::vector<TrainingJob>& jobs);

}  // namespace shoal
