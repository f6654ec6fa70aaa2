#include "checkpoint/export.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "checkpoint/adapters.h"
#include "checkpoint/agreement.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/manifest.h"
#include "checkpoint/model_card.h"
#include "core/dtype.h"
#include "core/memory_file_system.h"
#include "core/recipe.h"
#include "data/tokenizer.h"
#include "models/adapters/adapter_folder.h"
#include "models/hf_writer.h"

namespace shoal {
namespace {

constexpr int64_t kRoundBytes = int64_t{64} << 20;  // Of weights that a rank holds at a time
constexpr int64_t kMaxTokenizerFile = int64_t{64} << 20;

struct Source {
  std::string step_directory;
  std::string run_directory;
};

absl::StatusOr<Source> FindSource(FileSystem& files, Communicator& comm,
                                  const CheckpointExport& options) {
  const absl::StatusOr<bool> has_manifest = Exists(files, JoinPath(options.source, kManifestName));
  SHOAL_ASSIGN_OR_RETURN(
      const std::vector<std::string> answers,
      AgreeAndGather(comm, has_manifest.ok()
                               ? absl::StatusOr<std::string>(*has_manifest ? "step" : "run")
                               : has_manifest.status()));
  if (answers[0] == "step") return Source{options.source, ParentPath(ParentPath(options.source))};
  const std::string checkpoints = JoinPath(options.source, "checkpoints");
  std::vector<std::string> skipped;
  SHOAL_ASSIGN_OR_RETURN(const std::optional<std::string> newest,
                         FindNewestValid(files, comm, checkpoints, &skipped, VerifyLevel::kSizes));
  if (options.warn && comm.rank() == 0) {
    for (const std::string& line : skipped) options.warn(line);
  }
  if (newest) return Source{*newest, options.source};
  return absl::NotFoundError(
      absl::StrCat("no whole checkpoint in ", checkpoints, ", and ", options.source,
                   " is none itself: give a run's folder, or a checkpoint's (checkpoints/step-N)"));
}

absl::StatusOr<std::map<std::string, std::string>> TokenizerFiles(
    FileSystem& files, const std::string& run_directory) {
  std::map<std::string, std::string> contents;
  const std::string folder = JoinPath(run_directory, kTokenizerFolderName);
  SHOAL_ASSIGN_OR_RETURN(const bool found, Exists(files, folder));
  if (!found) return contents;
  SHOAL_ASSIGN_OR_RETURN(const std::vector<std::string> names, files.List(folder));
  for (const std::string& name : names) {
    SHOAL_ASSIGN_OR_RETURN(const FileInfo info, files.Stat(JoinPath(folder, name)));
    if (info.is_directory || name[0] == '.') continue;
    SHOAL_ASSIGN_OR_RETURN(contents[name],
                           ReadFile(files, JoinPath(folder, name), kMaxTokenizerFile));
  }
  return contents;
}

// Special tokens that the configuration leaves open are the tokenizer's: without them, readers of
// the folder would take their own family's defaults.
absl::Status NameSpecialTokens(FileSystem& files, const std::string& run_directory,
                               ModelConfig& config) {
  const std::string folder = JoinPath(run_directory, kTokenizerFolderName);
  SHOAL_ASSIGN_OR_RETURN(const bool found, Exists(files, JoinPath(folder, "tokenizer.json")));
  if (!found) return absl::OkStatus();
  SHOAL_ASSIGN_OR_RETURN(const std::string json,
                         ReadFile(files, JoinPath(folder, "tokenizer.json"), kMaxTokenizerFile));
  const auto names = ReadFile(files, JoinPath(folder, "tokenizer_config.json"), kMaxTokenizerFile);
  SHOAL_ASSIGN_OR_RETURN(const Tokenizer tokenizer, Tokenizer::FromJson(json, names.value_or("")));
  if (config.eos_token_ids.empty() && tokenizer.eos_id()) {
    config.eos_token_ids = {*tokenizer.eos_id()};
    config.json["eos_token_id"] = *tokenizer.eos_id();
  }
  const auto name = [&](const char* key, std::optional<int32_t> id, std::optional<int64_t>& field) {
    if (field || !id) return;
    field = *id;
    config.json[key] = *id;
  };
  name("bos_token_id", tokenizer.bos_id(), config.bos_token_id);
  name("pad_token_id", tokenizer.pad_id(), config.pad_token_id);
  return absl::OkStatus();
}

at::ScalarType RecipeDtype(const TrainerState& state) {
  const auto recipe = ParseRecipe(state.recipe_yaml(), "recipe");
  if (!recipe.ok()) return at::kFloat;
  return *DtypeFromName(Dtype_Name(recipe->proto.model().dtype()));
}

// A run of one weight's elements, read by one rank in one round.
struct Slice {
  const ParameterSpec* spec;
  int64_t begin, numel;
};

// rounds[r][rank]: what the rank moves in round r, at most kRoundBytes. The same on every rank.
std::vector<std::vector<std::vector<Slice>>> DealOut(const std::vector<ParameterSpec>& weights,
                                                     int num_ranks, int64_t element_bytes) {
  const int64_t limit = kRoundBytes / element_bytes;
  std::vector<std::vector<std::vector<Slice>>> rounds;
  std::vector<int64_t> load(num_ranks, limit);
  for (const ParameterSpec& spec : weights) {
    // A matrix that lies transposed is turned back whole.
    const int64_t most = spec.transposed() ? std::max<int64_t>(1, spec.numel()) : limit;
    for (int64_t begin = 0; begin < spec.numel(); begin += most) {
      const int64_t numel = std::min(most, spec.numel() - begin);
      auto lightest = std::min_element(load.begin(), load.end());
      if (*lightest > 0 && *lightest + numel > limit) {
        rounds.emplace_back(num_ranks);
        std::fill(load.begin(), load.end(), 0);
        lightest = load.begin();
      }
      rounds.back()[lightest - load.begin()].push_back({&spec, begin, numel});
      *lightest += numel;
    }
  }
  return rounds;
}

// `work` on rank 0 alone; its status on every rank. Collective.
template <typename Work>
absl::Status OnRankZero(Communicator& comm, const Work& work) {
  return Agree(comm, comm.rank() == 0 ? Guarded(work) : absl::OkStatus());
}

struct Contents {
  Model model;
  std::optional<Model> adapted;  // The same with adapters, which the export merges
  std::string adapter_config;    // Its adapter_config.json
  std::map<std::string, Tensor> adapters;
  at::ScalarType stored = at::kFloat;  // The weights' type in the checkpoint
  std::set<std::string> means;         // Weights whose running means are exported in their stead
  ExportOptions options;
};

// Loads this rank's slices of a round and writes them. Collective.
absl::Status MoveSlices(FileSystem& files, Communicator& comm, const std::string& step_directory,
                        const std::vector<Slice>& slices, const Contents& contents,
                        HuggingFaceWriter& writer) {
  std::vector<StatePiece> pieces;
  for (const Slice& slice : slices) {
    const std::string& name = slice.spec->name;
    const bool mean = contents.means.contains(name);
    pieces.push_back({.name = absl::StrCat(mean ? kMeanStatePrefix : kWeightStatePrefix, name),
                      .shape = slice.spec->memory_shape(),
                      .begin = slice.begin,
                      .data = at::empty({slice.numel}, contents.stored)});
  }
  SHOAL_RETURN_IF_ERROR(
      LoadCheckpoint(files, comm, step_directory, pieces, UnreadTensors::kAllow).status());
  return Agree(comm, Guarded([&]() -> absl::Status {
                 for (size_t i = 0; i < slices.size(); ++i) {
                   const ParameterSpec& spec = *slices[i].spec;
                   Tensor data = pieces[i].data;
                   if (spec.transposed())
                     data = data.view(spec.memory_shape()).t().contiguous().view({-1});
                   if (contents.adapted) {
                     MergeAdapter(contents.adapters, *contents.adapted, spec, slices[i].begin,
                                  data);
                   }
                   SHOAL_RETURN_IF_ERROR(writer.Write(spec, slices[i].begin, data));
                 }
                 return absl::OkStatus();
               }));
}

absl::StatusOr<Contents> ReadContents(FileSystem& files, const Source& source,
                                      const CheckpointExport& options) {
  SHOAL_ASSIGN_OR_RETURN(const Manifest manifest, ReadManifest(files, source.step_directory));
  const TrainerState& state = manifest.state();
  const auto text = [&](const char* key) {
    const auto found = state.extra().find(key);
    return found == state.extra().end() ? std::string() : found->second;
  };
  if (text(kConfigStateKey).empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat(source.step_directory, " does not record its model's config.json"));
  }
  Contents contents;
  SHOAL_ASSIGN_OR_RETURN(ModelConfig config, ModelConfigFromText(text(kConfigStateKey),
                                                                 text(kGenerationConfigStateKey)));
  SHOAL_RETURN_IF_ERROR(NameSpecialTokens(files, source.run_directory, config));
  SHOAL_ASSIGN_OR_RETURN(contents.model, BuildModel(config));
  contents.adapter_config = text(kAdapterConfigStateKey);
  if (!contents.adapter_config.empty()) {
    MemoryFileSystem folder;
    SHOAL_RETURN_IF_ERROR(WriteFileAtomically(folder, absl::StrCat("/", kAdapterConfigName),
                                              contents.adapter_config));
    SHOAL_ASSIGN_OR_RETURN(const auto adapter, ReadAdapterFolder(folder, "/"));
    config.lora = adapter->lora;
    SHOAL_ASSIGN_OR_RETURN(contents.adapted, BuildModel(config));
  }
  for (const Manifest::Tensor& tensor : manifest.tensors()) {
    if (tensor.name().starts_with(kWeightStatePrefix) && tensor.dtype() == "F64")
      contents.stored = at::kDouble;
    if (tensor.name().starts_with(kMeanStatePrefix) && state.extra().contains(kExportMeansKey))
      contents.means.insert(tensor.name().substr(std::strlen(kMeanStatePrefix)));
  }
  contents.options.dtype = options.dtype.value_or(RecipeDtype(state));
  contents.options.overwrite = options.overwrite;
  contents.options.card =
      MakeModelCard(state, MeasuredEvalLoss(files, source.run_directory, state.step()));
  SHOAL_ASSIGN_OR_RETURN(contents.options.extra_files, TokenizerFiles(files, source.run_directory));
  return contents;
}

absl::Status MoveWeights(FileSystem& files, Communicator& comm, const Source& source,
                         const Contents& contents, HuggingFaceWriter& writer) {
  const std::vector<ParameterSpec> weights = contents.model.unique_parameters();
  const auto rounds = DealOut(weights, comm.size(), ElementBytes(contents.stored));
  for (const auto& round : rounds) {
    SHOAL_RETURN_IF_ERROR(
        MoveSlices(files, comm, source.step_directory, round[comm.rank()], contents, writer));
  }
  return Agree(comm, Guarded([&] { return writer.Flush(); }));
}

}  // namespace

absl::StatusOr<ModelConfig> ModelConfigFromText(const std::string& config_json,
                                                const std::string& generation_config_json) {
  MemoryFileSystem folder;
  SHOAL_RETURN_IF_ERROR(WriteFileAtomically(folder, "/config.json", config_json));
  if (!generation_config_json.empty()) {
    SHOAL_RETURN_IF_ERROR(
        WriteFileAtomically(folder, "/generation_config.json", generation_config_json));
  }
  SHOAL_ASSIGN_OR_RETURN(ModelConfig config, LoadModelConfig(folder, "/"));
  config.origin.clear();
  return config;
}

absl::StatusOr<std::string> ExportCheckpoint(FileSystem& files, Communicator& comm,
                                             const CheckpointExport& options) {
  SHOAL_ASSIGN_OR_RETURN(const Source source, FindSource(files, comm, options));
  absl::StatusOr<Contents> contents = Guarded([&] { return ReadContents(files, source, options); });
  SHOAL_RETURN_IF_ERROR(Agree(comm, contents.status()));
  const bool no_tokenizer = contents->options.extra_files.empty();
  if (contents->adapted) {
    SHOAL_ASSIGN_OR_RETURN(contents->adapters,
                           LoadAdapters(files, comm, source.step_directory, *contents->adapted,
                                        contents->stored, contents->means));
    SHOAL_ASSIGN_OR_RETURN(
        const auto adapter_files,
        AdapterFiles(contents->adapters, contents->adapter_config, contents->options.dtype));
    for (const auto& [name, content] : adapter_files)
      contents->options.extra_files[JoinPath("adapter", name)] = content;
  }
  if (no_tokenizer && options.warn && comm.rank() == 0) {
    options.warn(absl::StrCat("no tokenizer in ",
                              JoinPath(source.run_directory, kTokenizerFolderName),
                              ": the export holds none, and text cannot be generated from it"));
  }
  auto writer =
      HuggingFaceWriter::Plan(files, contents->model, options.directory, contents->options);
  SHOAL_RETURN_IF_ERROR(Agree(comm, writer.status()));
  SHOAL_RETURN_IF_ERROR(OnRankZero(comm, [&] { return writer->Create(); }));
  absl::Status status = MoveWeights(files, comm, source, *contents, *writer);
  if (status.ok()) status = OnRankZero(comm, [&] { return writer->Finish(); });
  if (status.ok()) return source.step_directory;
  if (comm.rank() == 0) (void)writer->Abandon();  // The first error is the one to tell
  return status;
}

}  // namespace shoal
