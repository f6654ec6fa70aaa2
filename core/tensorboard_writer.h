// Event files that TensorBoard (and tbparse) reads, without TensorFlow: TFRecord frames, each with
// masked CRC-32C of its length and of its data, around Event messages.
#pragma once

#include <memory>

#include "core/file_system.h"
#include "core/metrics.h"

namespace shoal {

// Makes a new event file in `directory` (made if missing): one a start of the run, as TensorBoard
// expects. `last_step`: the step that the run resumes from (0: a new run); TensorBoard is told to
// forget what earlier files say of later steps. `recipe_yaml`, if not empty, is shown under Text.
// Values are float32 there: metrics.jsonl has all digits. Tags: loss -> "train/loss", eval_loss ->
// "eval/loss", tokens_per_second -> "speed/tokens_per_second", bytes_sent -> "bytes/bytes_sent"; an
// extra name with a slash stays as it is.
absl::StatusOr<std::unique_ptr<MetricsSink>> OpenTensorboardSink(FileSystem& files,
                                                                 const std::string& directory,
                                                                 int64_t last_step,
                                                                 const std::string& recipe_yaml);

// `data` as one TFRecord: length (uint64), masked CRC of it, data, masked CRC of that;
// little-endian.
std::string TfRecord(absl::string_view data);

}  // namespace shoal
