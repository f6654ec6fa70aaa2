#include "launch/score_command.h"

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "inference/loaded_model.h"
#include "inference/score.h"
#include "launch/device_option.h"

namespace shoal {
namespace {

constexpr int64_t kMaxTokensBytes = int64_t{1} << 30;

struct ScoreCommandOptions {
  std::string model;
  std::string file;
  std::string dtype = "float32";
  DeviceRequest device = DeviceRequest::kAuto;
};

// {"input_ids": [[...], ...]}; other keys (an attention_mask, say) are refused, since they would
// change what is meant.
absl::StatusOr<std::vector<std::vector<int64_t>>> ReadRows(FileSystem& files,
                                                           const std::string& path) {
  SHOAL_ASSIGN_OR_RETURN(const Json json, ReadJsonFile(files, path, kMaxTokensBytes));
  if (!json.is_object() || json.size() != 1 || !json.contains("input_ids") ||
      !json["input_ids"].is_array()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": must be {\"input_ids\": [[1, 2, ...], ...]} and no more"));
  }
  std::vector<std::vector<int64_t>> rows;
  for (const Json& row : json["input_ids"]) {
    const std::string where = absl::StrCat(path, ": input_ids[", rows.size(), "]");
    if (!row.is_array())
      return absl::InvalidArgumentError(absl::StrCat(where, " is not a list of token ids"));
    std::vector<int64_t>& ids = rows.emplace_back();
    for (const Json& id : row) {
      if (!id.is_number_integer() || (id.is_number_unsigned() && id.get<uint64_t>() > INT64_MAX)) {
        return absl::InvalidArgumentError(
            absl::StrCat(where, "[", ids.size(), "] is ", id.dump(), ", not a token id"));
      }
      ids.push_back(id.get<int64_t>());
    }
  }
  return rows;
}

absl::Status Score(const ScoreCommandOptions& options) {
  PosixFileSystem files;
  SHOAL_ASSIGN_OR_RETURN(const at::ScalarType dtype, ParseComputeDtype(options.dtype));
  SHOAL_ASSIGN_OR_RETURN(const auto rows, ReadRows(files, options.file));
  SHOAL_ASSIGN_OR_RETURN(const at::Device device, DeviceOfOption(options.device));
  SHOAL_ASSIGN_OR_RETURN(const LoadedModel loaded,
                         LoadModelForInference(files, options.model, dtype, {}, device));
  const auto logprobs = ScoreTokens(loaded.model, loaded.weights, rows);
  if (!logprobs.ok()) return Annotate(logprobs.status(), options.file);

  const int digits = dtype == at::kDouble ? 17 : 9;  // So many round-trip
  std::string text = "{\"logprobs\": [";
  for (size_t i = 0; i < logprobs->size(); ++i) {
    text += i ? ",\n[" : "[";
    for (size_t j = 0; j < (*logprobs)[i].size(); ++j) {
      const double value = (*logprobs)[i][j];
      if (!std::isfinite(value)) {
        return absl::InternalError(
            absl::StrCat("the log-probability of token ", j + 1, " of row ", i, " is ", value,
                         ": the weights are damaged or overflow in ", options.dtype));
      }
      absl::StrAppendFormat(&text, "%s%.*g", j ? ", " : "", digits, value);
    }
    text += "]";
  }
  text += "]}\n";
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    return absl::UnavailableError("standard output could not be written");
  }
  return absl::OkStatus();
}

}  // namespace

void AddScoreCommand(CommandLine& line) {
  auto options = std::make_shared<ScoreCommandOptions>();
  CLI::App* command = line.Add("score",
                               "Print {\"logprobs\": [[...], ...]}: the log-probability of each "
                               "token of each row after the first, given "
                               "those before it",
                               "echo '{\"input_ids\": [[5, 17, 2], [5, 17]]}' > tokens.json\n"
                               "shoal score runs/quickstart/export --file tokens.json",
                               [options] { return Score(*options); });
  command
      ->add_option("model", options->model,
                   "A Hugging Face folder, or a run's folder (its export is taken)")
      ->required();
  command
      ->add_option("--file", options->file,
                   "A JSON file {\"input_ids\": [[...], ...]}; rows of any lengths")
      ->required();
  command->add_option("--dtype", options->dtype, "float32, bfloat16, float16 or float64")
      ->capture_default_str();
  AddDeviceOption(command, options->device);
}

}  // namespace shoal
