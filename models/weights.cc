#include "models/weights.h"

#include <algorithm>
#include <cstring>
#include <set>

#include <ATen/ATen.h>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"

#include "core/dtype.h"
#include "core/large_pages.h"
#include "core/random.h"
#include "models/adapters/adapter_folder.h"
#include "models/blocks/score_head.h"
#include "models/family.h"
#include "models/json.h"

namespace shoal {
namespace {

constexpr size_t kMaxListed = 8;  // Names of one kind in an error
constexpr int64_t kMaxIndexBytes = 64 << 20;

std::string ListNames(const std::vector<std::string>& names) {
  const size_t shown = std::min(names.size(), kMaxListed);
  const std::string text = absl::StrJoin(names.begin(), names.begin() + shown, ", ");
  return shown == names.size() ? text : absl::StrCat(text, " and ", names.size() - shown, " more");
}

std::string ShowShape(const std::vector<int64_t>& shape) {
  return absl::StrCat("(", absl::StrJoin(shape, ", "), ")");
}

// The files of a folder that hold weights, by name.
absl::StatusOr<std::vector<std::string>> WeightFiles(FileSystem& files,
                                                     const std::string& directory) {
  const std::string single = "model.safetensors", index_name = "model.safetensors.index.json";
  SHOAL_ASSIGN_OR_RETURN(const bool has_single, Exists(files, JoinPath(directory, single)));
  if (has_single) return std::vector<std::string>{single};
  const std::string index_path = JoinPath(directory, index_name);
  SHOAL_ASSIGN_OR_RETURN(const bool has_index, Exists(files, index_path));
  if (!has_index) {
    return absl::NotFoundError(
        absl::StrCat(directory, " has neither ", single, " nor ", index_name));
  }
  SHOAL_ASSIGN_OR_RETURN(const Json index, ReadJsonFile(files, index_path, kMaxIndexBytes));
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (map == index.end() || !map->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(index_path, " has no weight_map"));
  }
  std::set<std::string> names;
  for (const auto& [tensor, file] : map->items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    // A name with a path could make us read any file of this machine.
    if (name.empty() || absl::StrContains(name, '/') || absl::StrContains(name, '\0') ||
        name[0] == '.') {
      return absl::InvalidArgumentError(
          absl::StrCat(index_path, ": weight_map of ", tensor, " names no file here"));
    }
    names.insert(name);
  }
  return std::vector<std::string>(names.begin(), names.end());
}

}  // namespace

absl::StatusOr<WeightReader> WeightReader::Open(FileSystem& files, const std::string& directory,
                                                const Model& model) {
  WeightReader reader;
  SHOAL_ASSIGN_OR_RETURN(const auto adapter, ReadAdapterFolder(files, directory));
  const std::string base = adapter ? adapter->base : directory;
  if (adapter) {
    SHOAL_RETURN_IF_ERROR(
        reader.OpenFile(files, JoinPath(directory, kAdapterWeightsName), /*of_adapter=*/true));
  }
  SHOAL_ASSIGN_OR_RETURN(const std::vector<std::string> names, WeightFiles(files, base));
  for (const std::string& name : names)
    SHOAL_RETURN_IF_ERROR(reader.OpenFile(files, JoinPath(base, name), /*of_adapter=*/false));
  SHOAL_RETURN_IF_ERROR(reader.Bind(model, directory));
  SHOAL_RETURN_IF_ERROR(reader.CheckTiedCopies(model));
  return reader;
}

absl::Status WeightReader::OpenFile(FileSystem& files, const std::string& path, bool of_adapter) {
  SHOAL_ASSIGN_OR_RETURN(auto file, SafetensorsReader::Open(files, path));
  const int number = static_cast<int>(files_.size());
  for (size_t i = 0; i < file->tensors().size(); ++i) {
    std::string tensor = file->tensors()[i].name;
    if (of_adapter) tensor = FromPeftName(tensor);
    if (tensor.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": ", file->tensors()[i].name, " is no name of an adapter's weight"));
    }
    if (stored_.emplace(tensor, Place{number, static_cast<int>(i)}).second) continue;
    // What an adapter trained, a score head, comes before its base's.
    if (tensor == ScoreHeadBlock::kWeightName) continue;
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", tensor, " is in two files"));
  }
  files_.push_back(std::move(file));
  return absl::OkStatus();
}

const WeightReader::Place* WeightReader::FindStored(const std::string& name,
                                                    const std::string& prefix) const {
  std::vector<std::string> spellings = {name, prefix + name};
  if (absl::StartsWith(name, prefix)) spellings.push_back(name.substr(prefix.size()));
  for (const std::string& spelling : spellings) {
    if (const auto found = stored_.find(spelling); found != stored_.end()) return &found->second;
  }
  return nullptr;
}

absl::Status WeightReader::Bind(const Model& model, const std::string& directory) {
  const ModelFamily& family = *model.config.family;
  const std::string head = family.WeightName("head.weight"),
                    tokens = family.WeightName("embedding.tokens");
  const bool tied = model.config.tie_word_embeddings && !head.empty();
  std::vector<std::string> missing, wrong, unknown;
  std::set<const Place*> used;
  for (const ParameterSpec& spec : model.unique_parameters()) {
    const Place* place = FindStored(spec.name, family.prefix);
    if (!place && tied && spec.name == tokens) place = FindStored(head, family.prefix);
    if (!place && IsSavedWithAdapter(spec)) continue;
    if (!place) {
      missing.push_back(spec.name);
      continue;
    }
    used.insert(place);
    places_[spec.name] = *place;
    const SafetensorsEntry& entry = EntryAt(*place);
    if (entry.shape != spec.full_shape()) {
      wrong.push_back(absl::StrCat(spec.name, " is ", ShowShape(entry.shape),
                                   ", the configuration says ", ShowShape(spec.full_shape())));
    } else if (const auto dtype = DtypeOfSafetensors(entry.dtype);
               !dtype || !at::isFloatingType(*dtype)) {
      wrong.push_back(absl::StrCat(spec.name, " has dtype ", entry.dtype));
    }
  }
  const Place* language_head = head.empty() ? nullptr : FindStored(head, family.prefix);
  const Place* tied_copy = tied ? FindStored(head, family.prefix) : nullptr;
  for (const auto& [name, place] : stored_) {
    const bool other_head = model.config.head == HeadKind::kScore && &place == language_head;
    if (!used.contains(&place) && &place != tied_copy && !other_head && !family.IgnoresWeight(name))
      unknown.push_back(name);
  }
  std::vector<std::string> problems;
  if (!missing.empty()) problems.push_back(absl::StrCat("missing: ", ListNames(missing)));
  if (!unknown.empty()) problems.push_back(absl::StrCat("not in the model: ", ListNames(unknown)));
  if (!wrong.empty()) problems.push_back(absl::StrCat("wrong: ", ListNames(wrong)));
  if (problems.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the weights of ", directory, " do not fit its config.json (family ",
                   family.model_type, "): ", absl::StrJoin(problems, "; ")));
}

// A head that is stored although it is tied must hold the same bytes, or one of the two would be
// lost in silence.
absl::Status WeightReader::CheckTiedCopies(const Model& model) const {
  const ModelFamily& family = *model.config.family;
  const std::string head = family.WeightName("head.weight"),
                    tokens = family.WeightName("embedding.tokens");
  if (!model.config.tie_word_embeddings || head.empty()) return absl::OkStatus();
  const Place* copy = FindStored(head, family.prefix);
  const Place& owner = places_.at(tokens);
  if (!copy || (copy->file == owner.file && copy->tensor == owner.tensor)) return absl::OkStatus();
  const SafetensorsEntry &a = EntryAt(owner), &b = EntryAt(*copy);
  const auto differ = [&] {
    return absl::InvalidArgumentError(absl::StrCat(
        head, " and ", tokens,
        " differ, but the configuration ties them: ", "set tie_word_embeddings to false"));
  };
  if (a.shape != b.shape || a.dtype != b.dtype) return differ();
  constexpr int64_t kChunk = 1 << 20;
  for (int64_t begin = 0; begin < a.numel(); begin += kChunk) {
    const int64_t n = std::min(kChunk, a.numel() - begin);
    Tensor left = at::empty({n}, at::TensorOptions(*DtypeOfSafetensors(a.dtype))),
           right = at::empty_like(left);
    SHOAL_RETURN_IF_ERROR(files_[owner.file]->Read(a, begin, left));
    SHOAL_RETURN_IF_ERROR(files_[copy->file]->Read(b, begin, right));
    if (std::memcmp(left.const_data_ptr(), right.const_data_ptr(), left.nbytes()) != 0)
      return differ();
  }
  return absl::OkStatus();
}

absl::Status WeightReader::Read(const ParameterSpec& spec, int64_t begin, Tensor& out) const {
  const auto place = places_.find(spec.name);
  SHOAL_CHECK(place != places_.end())
      << spec.name << " is not of the model that the reader was opened for";
  return files_[place->second.file]->Read(EntryAt(place->second), begin, out);
}

absl::Status WeightReader::ReadInMemoryOrder(const ParameterSpec& spec, int64_t begin,
                                             Tensor& out) const {
  if (!spec.transposed() || out.numel() == 0) return Read(spec, begin, out);
  const int64_t rows = spec.full_shape()[0], columns = spec.full_shape()[1];
  const int64_t first = begin / rows, end = (begin + out.numel() - 1) / rows + 1;  // Columns
  Tensor part = at::empty({rows, end - first}, out.options().device(at::kCPU));
  for (int64_t row = 0; row < rows; ++row) {
    Tensor of_row = part[row];
    SHOAL_RETURN_IF_ERROR(Read(spec, row * columns + first, of_row));
  }
  out.copy_(part.t().reshape({-1}).narrow(0, begin - first * rows, out.numel()));
  return absl::OkStatus();
}

int64_t WeightReader::bytes_read() const {
  int64_t total = 0;
  for (const auto& file : files_) total += file->bytes_read();
  return total;
}

namespace {

// Weights of all blocks, each made by `fill` and tied ones shared.
absl::StatusOr<ModelWeights> MakeWeights(
    const Model& model, at::ScalarType dtype, at::Device device,
    const std::function<absl::Status(const ParameterSpec&, Tensor&)>& fill) {
  ModelWeights weights;
  for (const auto& block : model.blocks) {
    std::vector<Parameter>& parameters = weights.emplace_back();
    // One buffer a block, so that neighbours are one matrix (see projection.h).
    int64_t total = 0;
    for (size_t i = 0; i < block->parameters().size(); ++i) {
      if (!block->ties()[i] && !block->parameters()[i].buffer)
        total += block->parameters()[i].numel();
    }
    const Tensor flat = EmptyInLargePages(total, dtype, device);
    int64_t offset = 0;
    for (size_t i = 0; i < block->parameters().size(); ++i) {
      const ParameterSpec& spec = block->parameters()[i];
      if (const std::optional<TiedTo>& tie = block->ties()[i]) {
        parameters.push_back(weights[tie->block][tie->parameter]);
        continue;
      }
      if (spec.buffer) {
        Tensor value = at::zeros(spec.shape, at::TensorOptions(SumDtype(dtype)).device(device));
        SHOAL_RETURN_IF_ERROR(fill(spec, value));
        parameters.push_back({.value = value, .grad = Tensor()});
        continue;
      }
      // A tensor-parallel rank's part lies as it does in training (TensorCut).
      const bool swapped = spec.transposed() && spec.cut.full_size > 0;
      const Tensor elements = flat.narrow(0, offset, spec.numel());
      Tensor value =
          swapped ? elements.view({spec.shape[1], spec.shape[0]}).t() : elements.view(spec.shape);
      offset += spec.numel();
      SHOAL_RETURN_IF_ERROR(fill(spec, value));
      parameters.push_back({.value = value, .grad = Tensor()});
    }
  }
  return weights;
}

// What a rank holds of a weight, whole or a part.
absl::Status ReadPart(const WeightReader& reader, const ParameterSpec& spec, Tensor& out) {
  if (spec.cut.full_size == 0) return reader.Read(spec, 0, out);
  const Tensor elements = (spec.transposed() ? out.t() : out).view({-1});
  int64_t at = 0;
  for (const ElementRun& run : RunsInWhole(spec, 0, spec.numel())) {
    Tensor part = elements.narrow(0, at, run.count);
    SHOAL_RETURN_IF_ERROR(reader.ReadInMemoryOrder(spec, run.first, part));
    at += run.count;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelWeights> LoadAllWeights(FileSystem& files, const Model& model,
                                            const std::string& directory, at::ScalarType dtype,
                                            at::Device device) {
  SHOAL_ASSIGN_OR_RETURN(const WeightReader reader, WeightReader::Open(files, directory, model));
  return MakeWeights(model, dtype, device, [&](const ParameterSpec& spec, Tensor& out) {
    if (reader.Holds(spec)) return ReadPart(reader, spec, out);
    return absl::Status(absl::InvalidArgumentError(
        absl::StrCat("the weights of ", directory, " lack ", spec.name)));
  });
}

void InitializeSlice(const ParameterSpec& spec, uint64_t seed, int64_t begin, Tensor& out) {
  switch (spec.init.kind) {
    case Initializer::Kind::kZeros:
      out.zero_();
      return;
    case Initializer::Kind::kOnes:
      out.fill_(1);
      return;
    case Initializer::Kind::kNormal:
      FillNormal(out, Philox(seed, StreamId(spec.name)), begin, spec.init.stddev);
      return;
  }
}

ModelWeights InitializeAllWeights(const Model& model, uint64_t seed, at::ScalarType dtype) {
  return *MakeWeights(model, dtype, at::kCPU, [&](const ParameterSpec& spec, Tensor& out) {
    SHOAL_CHECK(spec.cut.full_size == 0) << spec.name << " is a part of a weight";
    if (!spec.transposed()) {
      InitializeSlice(spec, seed, 0, out);
      return absl::OkStatus();
    }
    Tensor elements = at::empty({spec.numel()}, out.options());
    InitializeSlice(spec, seed, 0, elements);
    out.copy_(elements.view(spec.memory_shape()).t());
    return absl::OkStatus();
  });
}

}  // namespace shoal
