#include "models/hf_writer.h"

#include <algorithm>

#include "absl/strings/match.h"

#include "core/dtype.h"
#include "models/hf_config.h"

namespace shoal {
namespace {

// Parameters in order, dealt into files of at most max_bytes; a larger one gets a file to itself.
std::vector<std::vector<SafetensorsEntry>> DealShards(const Model& model,
                                                      const ExportOptions& options) {
  std::vector<std::vector<SafetensorsEntry>> shards(1);
  int64_t bytes = 0;
  for (const ParameterSpec& spec : model.unique_parameters()) {
    // Buffers are too fine for fewer bits.
    const at::ScalarType dtype = spec.buffer ? at::kFloat : options.dtype;
    const int64_t more = spec.numel() * ElementBytes(dtype);
    if (!shards.back().empty() && bytes + more > options.max_shard_bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    bytes += more;
    shards.back().push_back(
        {.name = spec.name, .dtype = SafetensorsDtype(dtype), .shape = spec.shape});
  }
  return shards;
}

std::string ShardName(size_t index, size_t count) {
  if (count == 1) return "model.safetensors";
  const auto digits = [](size_t n) { return absl::StrCat(absl::Dec(n, absl::kZeroPad5)); };
  return absl::StrCat("model-", digits(index + 1), "-of-", digits(count), ".safetensors");
}

}  // namespace

absl::StatusOr<HuggingFaceWriter> HuggingFaceWriter::Plan(FileSystem& files, const Model& model,
                                                          const std::string& directory,
                                                          ExportOptions options) {
  HuggingFaceWriter writer;
  writer.files_ = &files;
  writer.directory_ = directory;
  while (writer.directory_.size() > 1 && writer.directory_.back() == '/')
    writer.directory_.pop_back();
  writer.partial_ = writer.directory_ + ".partial";
  writer.overwrite_ = options.overwrite;
  if (SafetensorsDtype(options.dtype).empty() || !at::isFloatingType(options.dtype)) {
    return absl::InvalidArgumentError("exports are float64, float32, bfloat16 or float16");
  }
  std::vector<std::vector<SafetensorsEntry>> dealt = DealShards(model, options);
  Json weight_map = Json::object();
  std::map<std::string, std::string> shard_of;
  for (size_t s = 0; s < dealt.size(); ++s) {
    Shard shard{.name = ShardName(s, dealt.size()),
                .layout = LayOutSafetensors(std::move(dealt[s]), {{"format", "pt"}}),
                .file = nullptr};
    for (size_t t = 0; t < shard.layout.tensors.size(); ++t) {
      const SafetensorsEntry& entry = shard.layout.tensors[t];
      writer.places_[entry.name] = {.shard = s, .tensor = t};
      shard_of[entry.name] = shard.name;
      writer.total_bytes_ += entry.end - entry.begin;
    }
    writer.shards_.push_back(std::move(shard));
  }
  for (const auto& [name, shard] : shard_of) weight_map[name] = shard;
  writer.small_files_ = std::move(options.extra_files);
  writer.small_files_["config.json"] = HuggingFaceConfig(model.config, options.dtype);
  writer.small_files_["generation_config.json"] = HuggingFaceGenerationConfig(model.config);
  writer.small_files_["README.md"] = HuggingFaceModelCard(model, options.card);
  if (writer.shards_.size() > 1) {
    const Json index = {
        {"metadata",
         {{"total_parameters", model.num_parameters()}, {"total_size", writer.total_bytes_}}},
        {"weight_map", weight_map}};
    writer.small_files_["model.safetensors.index.json"] = index.dump(2) + "\n";
  }
  return writer;
}

absl::Status HuggingFaceWriter::Create() {
  auto present = files_->List(directory_);
  if (!present.ok() && !absl::IsNotFound(present.status())) return present.status();
  if (present.ok() && !present->empty() && !overwrite_) {
    return absl::AlreadyExistsError(
        absl::StrCat(directory_, " exists and is not empty: name another folder"));
  }
  SHOAL_RETURN_IF_ERROR(RemoveRecursively(*files_, partial_));
  SHOAL_RETURN_IF_ERROR(CreateDirectories(*files_, partial_));
  for (const Shard& shard : shards_) {
    SHOAL_ASSIGN_OR_RETURN(
        auto file, files_->OpenForWrite(JoinPath(partial_, shard.name), OpenMode::kCreateNew));
    SHOAL_RETURN_IF_ERROR(file->WriteAt(0, shard.layout.head));
    const int64_t head_bytes = static_cast<int64_t>(shard.layout.head.size());
    if (shard.layout.file_bytes > head_bytes) {
      SHOAL_RETURN_IF_ERROR(file->WriteAt(shard.layout.file_bytes - 1, absl::string_view("\0", 1)));
    }
    SHOAL_RETURN_IF_ERROR(file->Sync());
    SHOAL_RETURN_IF_ERROR(file->Close());
  }
  for (const auto& [name, content] : small_files_) {
    SHOAL_RETURN_IF_ERROR(CreateDirectories(*files_, ParentPath(JoinPath(partial_, name))));
    SHOAL_RETURN_IF_ERROR(WriteFileAtomically(*files_, JoinPath(partial_, name), content));
  }
  return absl::OkStatus();
}

absl::Status HuggingFaceWriter::Write(const ParameterSpec& spec, int64_t begin,
                                      const Tensor& slice) {
  const auto place = places_.find(spec.name);
  SHOAL_CHECK(place != places_.end()) << spec.name << " is not of the model that is exported";
  Shard& shard = shards_[place->second.shard];
  if (!shard.file) {
    SHOAL_ASSIGN_OR_RETURN(shard.file,
                           files_->OpenForWrite(JoinPath(partial_, shard.name), OpenMode::kUpdate));
  }
  return WriteSafetensorsSlice(*shard.file, shard.layout,
                               shard.layout.tensors[place->second.tensor], begin, slice);
}

absl::Status HuggingFaceWriter::Flush() {
  for (Shard& shard : shards_) {
    if (!shard.file) continue;
    SHOAL_RETURN_IF_ERROR(shard.file->Sync());
    SHOAL_RETURN_IF_ERROR(shard.file->Close());
    shard.file.reset();
  }
  return absl::OkStatus();
}

absl::Status HuggingFaceWriter::Finish() {
  SHOAL_RETURN_IF_ERROR(files_->SyncDirectory(partial_));
  SHOAL_ASSIGN_OR_RETURN(const bool replaces, Exists(*files_, directory_));
  if (replaces) {
    absl::Status swapped = files_->Exchange(partial_, directory_);
    if (absl::IsUnimplemented(swapped)) {
      SHOAL_RETURN_IF_ERROR(RemoveRecursively(*files_, directory_));
      swapped = files_->Rename(partial_, directory_);
    }
    SHOAL_RETURN_IF_ERROR(swapped);
    SHOAL_RETURN_IF_ERROR(RemoveRecursively(*files_, partial_));
  } else {
    SHOAL_RETURN_IF_ERROR(files_->Rename(partial_, directory_));
  }
  return files_->SyncDirectory(ParentPath(directory_));
}

absl::Status HuggingFaceWriter::Abandon() {
  for (Shard& shard : shards_) shard.file.reset();
  return RemoveRecursively(*files_, partial_);
}

}  // namespace shoal
