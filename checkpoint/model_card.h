// The README.md of an exported run.
#pragma once

#include <optional>
#include <string>

#include "checkpoint/checkpoint.pb.h"
#include "core/file_system.h"
#include "models/hf_writer.h"

namespace shoal {

// The last held-out loss at or before `step` in the run's metrics.jsonl; nullopt if there is none,
// or no such file. Lines that cannot be read are passed over.
std::optional<double> MeasuredEvalLoss(FileSystem& files, const std::string& run_directory,
                                       int64_t step);

// What is known of the run: its steps, data with licences, held-out loss, and its recipe.
ModelCard MakeModelCard(const TrainerState& state, std::optional<double> eval_loss);

}  // namespace shoal
