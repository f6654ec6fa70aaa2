#include "trainer/parity_record.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <map>

#include <google/protobuf/util/json_util.h>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "core/recipe_validation.h"
#include "core/rlhf_validation.h"
#include "trainer/state_pieces.h"
#include "trainer/training_run.h"

namespace shoal {
namespace {

// Parts of the recipe that say what is trained, and the keys in them that say only how.
constexpr const char* kSame[] = {"/task",  "/run/seed",         "/model/",     "/tokenizer/",
                                 "/data/", "/training/",        "/optimizer/", "/scheduler/",
                                 "/moe/",  "/checkpoint/resume"};
constexpr const char* kMayDiffer[] = {"/model/dtype",
                                      "/training/per_device_train_batch_size",
                                      "/training/gradient_accumulation_steps",
                                      "/training/global_batch_size",
                                      "/training/activation_checkpointing",
                                      "/training/offload_activations",
                                      "/training/loss_scaling",
                                      "/training/nan_policy",
                                      "/training/max_skipped_steps",
                                      "/optimizer/master_weights"};

bool MustBeSame(const std::string& key) {
  const auto starts = [&](const char* prefix) { return key.starts_with(prefix); };
  return std::any_of(std::begin(kSame), std::end(kSame), starts) &&
         std::none_of(std::begin(kMayDiffer), std::end(kMayDiffer), starts);
}

// "/optimizer/learning_rate" -> "0.003", defaults too.
absl::StatusOr<std::map<std::string, std::string>> WhatIsTrained(const Recipe& recipe) {
  google::protobuf::util::JsonPrintOptions options;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string text;
  const auto status = google::protobuf::util::MessageToJsonString(recipe, &text, options);
  if (!status.ok()) return absl::InternalError(absl::StrCat("recipe: ", status.ToString()));
  std::map<std::string, std::string> values;
  const nlohmann::json flat = nlohmann::json::parse(text).flatten();
  for (const auto& [key, value] : flat.items()) {
    if (!MustBeSame(key)) continue;
    values[key] = value.is_string() ? value.get<std::string>() : value.dump();
  }
  return values;
}

// The reduced gradients of this rank's shard after a step: not clipped, but without its loss scale.
std::vector<StatePiece> GradientPieces(const ShardedParameters& parameters, double loss_scale) {
  std::vector<StatePiece> pieces;
  for (const auto& unit : parameters.units()) {
    if (!unit->trainable()) continue;
    const OptimizerSlice slice = unit->optimizer_slice();
    const int64_t begin = unit->shard_begin();
    const Tensor gradients = loss_scale == 1 ? slice.gradients : slice.gradients / loss_scale;
    for (const auto& [spec, whole, offset] :
         slice.layout->RunsOf(begin, begin + slice.shard_numel)) {
      if (!whole.owned) continue;
      pieces.push_back({.name = absl::StrCat(kGradientKind, "/", spec.name),
                        .shape = spec.memory_shape(),
                        .begin = whole.first,
                        .data = gradients.narrow(0, begin - slice.begin + offset, whole.count)});
    }
  }
  return pieces;
}

// Keys of TrainerState::extra.
constexpr char kLossKey[] = "loss";
constexpr char kGradNormKey[] = "grad_norm";
constexpr char kWeightsKey[] = "weights";  // Lines of a T (transposed) or - and a name

StepRecord Record(int64_t step, const Model& model) {
  StepRecord record{.step = step};
  // A rank may hold some of the experts; the record is of all.
  const Model whole = *BuildModel(model.config);
  for (const ParameterSpec& spec : whole.unique_parameters())
    record.weights.push_back({spec.name, spec.transposed()});
  return record;
}

absl::Status TrainAndRecord(const LoadedRecipe& recipe, Communicator& world,
                            const TaskEnvironment& environment, const std::string& folder,
                            int64_t steps) {
  SHOAL_ASSIGN_OR_RETURN(const std::unique_ptr<TrainingRun> run,
                         TrainingRun::Build(recipe, world, environment));
  auto hook = std::make_unique<RecordHook>(
      folder, RecordHook::Parts{.files = environment.files,
                                .mesh = run->engine().mesh(),
                                .model = run->engine().model(),
                                .parameters = run->engine().parameters(),
                                .optimizer = run->engine().optimizer()});
  SHOAL_RETURN_IF_ERROR(hook->RecordStart(run->progress().step));
  return run->TrainWatched(steps, std::move(hook));
}

}  // namespace

std::string Digits(double value) {
  char text[32];
  return std::string(text, std::to_chars(text, text + sizeof text, value).ptr);
}

absl::Status CheckComparable(const LoadedRecipe& a, int ranks_a, const LoadedRecipe& b,
                             int ranks_b) {
  for (const LoadedRecipe* recipe : {&a, &b}) {
    if (!IsPlainTraining(recipe->proto)) {
      return recipe->ErrorAt("task", absl::StrCat("got ", Task_Name(recipe->proto.task()),
                                                  ", expected one whose steps can be recorded: "
                                                  "pretrain, sft, dpo or reward"));
    }
  }
  SHOAL_ASSIGN_OR_RETURN(auto values_a, WhatIsTrained(a.proto));
  SHOAL_ASSIGN_OR_RETURN(auto values_b, WhatIsTrained(b.proto));
  const auto add_batch = [](const LoadedRecipe& recipe, int ranks, auto& values) -> absl::Status {
    SHOAL_ASSIGN_OR_RETURN(const MeshPlan mesh, PlanMesh(recipe, ranks));
    SHOAL_ASSIGN_OR_RETURN(const BatchPlan batch, PlanBatch(recipe, mesh.data_parallel_ranks));
    values["/training/global_batch_size"] = absl::StrCat(batch.global);
    return absl::OkStatus();
  };
  SHOAL_RETURN_IF_ERROR(add_batch(a, ranks_a, values_a));
  SHOAL_RETURN_IF_ERROR(add_batch(b, ranks_b, values_b));
  auto keys = values_a;
  keys.insert(values_b.begin(), values_b.end());
  for (const auto& entry : keys) {
    const auto text = [&](const auto& values) {
      const auto found = values.find(entry.first);
      return found == values.end() ? std::string("not given") : found->second;
    };
    if (text(values_a) == text(values_b)) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        absl::StrReplaceAll(entry.first.substr(1), {{"/", "."}}), " is ", text(values_a),
        " in A and ", text(values_b),
        " in B: only runs that train the same model on the same data by the same rule can be "
        "compared"));
  }
  return absl::OkStatus();
}

absl::Status RecordRun(const LoadedRecipe& recipe, Communicator& world,
                       const TaskEnvironment& environment, const std::string& folder,
                       int64_t steps) {
  return Caught([&] { return TrainAndRecord(recipe, world, environment, folder, steps); });
}

absl::Status RecordHook::RecordStart(int64_t step) {
  return Save(ToTrainerState(Record(step, parts_.model)),
              ToStatePieces(parts_.optimizer.PiecesToSave()));
}

absl::Status RecordHook::AfterStep(const Trainer& trainer, const StepMetrics& metrics) {
  StepRecord record = Record(metrics.step, parts_.model);
  record.loss = metrics.loss;
  record.grad_norm = metrics.grad_norm;
  std::vector<StatePiece> pieces = ToStatePieces(parts_.optimizer.PiecesToSave());
  for (StatePiece& piece : GradientPieces(parts_.parameters, metrics.loss_scale))
    pieces.push_back(std::move(piece));
  return Save(ToTrainerState(record), pieces);
}

absl::Status RecordHook::Save(const TrainerState& state, const std::vector<StatePiece>& pieces) {
  return SaveCheckpoint(parts_.files, parts_.mesh.control(), folder_, state, pieces,
                        {.save_total_limit = std::numeric_limits<int>::max()});
}

TrainerState ToTrainerState(const StepRecord& record) {
  TrainerState state;
  state.set_step(record.step);
  auto& extra = *state.mutable_extra();
  if (record.loss) extra[kLossKey] = Digits(*record.loss);
  if (record.grad_norm) extra[kGradNormKey] = Digits(*record.grad_norm);
  std::string& lines = extra[kWeightsKey];
  for (const StepRecord::Weight& weight : record.weights)
    absl::StrAppend(&lines, weight.transposed ? "T" : "-", weight.name, "\n");
  return state;
}

StepRecord FromTrainerState(const TrainerState& state) {
  const auto text = [&](const char* key) {
    const auto found = state.extra().find(key);
    return found == state.extra().end() ? std::string() : found->second;
  };
  StepRecord record{.step = state.step()};
  const auto number = [&](const char* key, std::optional<double>& value) {
    double read;
    if (absl::SimpleAtod(text(key), &read)) value = read;
  };
  number(kLossKey, record.loss);
  number(kGradNormKey, record.grad_norm);
  const std::string lines = text(kWeightsKey);
  for (absl::string_view line : absl::StrSplit(lines, '\n', absl::SkipEmpty()))
    record.weights.push_back({std::string(line.substr(1)), line[0] == 'T'});
  return record;
}

}  // namespace shoal
