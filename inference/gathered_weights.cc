#include "inference/gathered_weights.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "absl/strings/str_format.h"

#include "core/large_pages.h"
#include "parallel/flat_layout.h"

namespace shoal {
namespace {

// The specs of a block's own weights (borrowed ones are another block's), without its buffers.
std::vector<ParameterSpec> OwnSpecs(const Block& block) {
  std::vector<ParameterSpec> specs;
  for (size_t i = 0; i < block.parameters().size(); ++i) {
    if (!block.ties()[i] && !block.parameters()[i].buffer) specs.push_back(block.parameters()[i]);
  }
  return specs;
}

FlatLayout LayoutOf(const Block& block) { return FlatLayout(OwnSpecs(block), /*num_shards=*/1); }

// Elements of a parameter in the order of memory, as one dimension.
Tensor InMemoryOrder(const Tensor& value, const ParameterSpec& spec) {
  return (spec.transposed() ? value.t() : value).reshape({-1});
}

void AddOwnedRuns(const ParameterSpec& spec, int64_t first, const Tensor& elements,
                  WeightHash& hash) {
  int64_t at = 0;
  for (const ElementRun& run : RunsInWhole(spec, first, elements.numel())) {
    if (run.owned) hash.Add(spec.name, run.first, elements.narrow(0, at, run.count));
    at += run.count;
  }
}

uint64_t SumOfHashes(Communicator& comm, uint64_t mine) {
  return static_cast<uint64_t>(SumOverRanks(comm, static_cast<int64_t>(mine)));
}

}  // namespace

absl::StatusOr<GatheredWeights> GatheredWeights::Create(const Source& source, Layout layout) {
  GatheredWeights gathered(source, layout);
  const DeviceMesh& mesh = source.mesh;
  const ModelConfig& config = source.model.config;
  const int tensor_ranks = mesh.tensor().size();
  const TensorPlace whole;
  const TensorPlace part{
      .rank = mesh.tensor().rank(), .size = tensor_ranks, .sequence_parallel = false};
  SHOAL_ASSIGN_OR_RETURN(gathered.model_,
                         BuildModel(config, layout == Layout::kWhole ? whole : part));
  for (int rank = 0; rank < tensor_ranks && layout == Layout::kWhole && tensor_ranks > 1; ++rank) {
    SHOAL_ASSIGN_OR_RETURN(
        Model model,
        BuildModel(config, {.rank = rank, .size = tensor_ranks, .sequence_parallel = false}));
    gathered.tensor_models_.push_back(std::move(model));
  }
  const auto& units = source.parameters.units();
  for (int unit = 0; unit < static_cast<int>(units.size()); ++unit) {
    const auto specs = units[unit]->layout().specs();
    for (int i = 0; i < static_cast<int>(specs.size()); ++i)
      gathered.places_[specs[i].name] = {unit, i};
  }
  SHOAL_RETURN_IF_ERROR(gathered.FindStages());
  return gathered;
}

// Who of the pipeline has which block: the first that holds all of its own weights.
absl::Status GatheredWeights::FindStages() {
  const int blocks = static_cast<int>(model_.blocks.size());
  const auto has = [&](int block) {
    const std::vector<ParameterSpec> specs = OwnSpecs(*model_.blocks[block]);
    return std::all_of(specs.begin(), specs.end(),
                       [&](const ParameterSpec& spec) { return places_.contains(spec.name); });
  };
  const Communicator& pipeline = source_.mesh.pipeline();
  const Tensor mine = at::zeros({blocks}, at::kLong);
  for (int block = 0; block < blocks; ++block)
    mine.mutable_data_ptr<int64_t>()[block] = has(block) ? pipeline.rank() : pipeline.size();
  Tensor first = mine;
  source_.mesh.model_control().AllReduce(first, ReduceOp::kMin);
  for (int block = 0; block < blocks; ++block) {
    const int64_t stage = first.const_data_ptr<int64_t>()[block];
    if (stage == pipeline.size()) {
      return absl::InternalError(
          absl::StrCat("no rank of the pipeline holds all weights of block ", block));
    }
    stage_of_block_.push_back(static_cast<int>(stage));
  }
  return absl::OkStatus();
}

bool GatheredWeights::UsesInPlace() const {
  return source_.parameters.options().stage < 3 && source_.mesh.pipeline().size() == 1 &&
         (layout_ == Layout::kTensor || source_.mesh.tensor().size() == 1);
}

absl::Status GatheredWeights::Gather() {
  const at::NoGradGuard no_grad;
  Release();
  const uint64_t want = HashOfSource();
  if (UsesInPlace()) {
    BindInPlace();
  } else {
    std::vector<Tensor> flats;  // A block's own weights on this tensor rank, end to end
    CopyLocalBlocks(flats);
    ShareOverStages(flats);
    BindCopies(flats);
  }
  hash_ = HashOfGathered();
  const int64_t differing = SumOverRanks(source_.mesh.control(), int64_t{hash_ != want});
  if (differing == 0) return absl::OkStatus();
  Release();
  return absl::InternalError(absl::StrFormat(
      "gathered weights differ from the trainer's on %d ranks: hash %016x, want %016x", differing,
      hash_, want));
}

void GatheredWeights::Release() { weights_.clear(); }

void GatheredWeights::BindInPlace() {
  for (const auto& block : model_.blocks) {
    std::vector<Parameter>& parameters = weights_.emplace_back();
    for (const ParameterSpec& spec : block->parameters()) {
      const Place& place = places_.at(spec.name);
      parameters.push_back(
          {.value =
               source_.parameters.units()[place.unit]->parameters()[place.index].value.detach(),
           .grad = {}});
    }
  }
}

// Unit by unit, since under stage 3 units take turns in the memory they are gathered into.
void GatheredWeights::CopyLocalBlocks(std::vector<Tensor>& flats) {
  const int pipeline_rank = source_.mesh.pipeline().rank();
  struct Target {
    int block, parameter;
  };
  std::map<std::string, Target> targets;
  std::vector<FlatLayout> layouts;
  const Model& local = LocalModel();
  for (int b = 0; b < static_cast<int>(local.blocks.size()); ++b) {
    layouts.push_back(LayoutOf(*local.blocks[b]));
    flats.push_back(EmptyInLargePages(layouts[b].numel(),
                                      source_.parameters.options().compute_dtype,
                                      source_.parameters.device()));
    if (stage_of_block_[b] != pipeline_rank) continue;
    for (int i = 0; i < static_cast<int>(layouts[b].specs().size()); ++i)
      targets[layouts[b].specs()[i].name] = {b, i};
  }
  for (const auto& unit : source_.parameters.units()) {
    unit->Gather();
    for (int i = 0; i < static_cast<int>(unit->layout().specs().size()); ++i) {
      const auto target = targets.find(unit->layout().specs()[i].name);
      if (target == targets.end()) continue;  // A copy of what another stage owns
      const auto& [block, parameter] = target->second;
      layouts[block].View(flats[block], parameter).copy_(unit->parameters()[i].value);
    }
  }
}

void GatheredWeights::ShareOverStages(std::vector<Tensor>& flats) {
  Communicator& pipeline = source_.mesh.pipeline();
  if (pipeline.size() == 1) return;
  for (size_t b = 0; b < flats.size(); ++b) pipeline.Broadcast(flats[b], stage_of_block_[b]);
}

// Parameters over copies: this tensor rank's own or, whole, all tensor ranks' put together.
void GatheredWeights::BindCopies(const std::vector<Tensor>& flats) {
  for (size_t b = 0; b < model_.blocks.size(); ++b) {
    const Block& block = *model_.blocks[b];
    const FlatLayout layout = LayoutOf(block);
    const Tensor flat =
        tensor_models_.empty() ? flats[b] : WholeBlock(static_cast<int>(b), flats[b]);
    std::vector<Parameter>& parameters = weights_.emplace_back();
    int own = 0;
    for (size_t i = 0; i < block.parameters().size(); ++i) {
      if (const std::optional<TiedTo>& tie = block.ties()[i]) {
        parameters.push_back(weights_[tie->block][tie->parameter]);
      } else if (block.parameters()[i].buffer) {
        parameters.push_back(
            {.value = CopyBuffer(block.parameters()[i], stage_of_block_[b]), .grad = {}});
      } else {
        parameters.push_back({.value = layout.View(flat, own++), .grad = {}});
      }
    }
  }
}

// Every rank of the stage holds it whole.
Tensor GatheredWeights::CopyBuffer(const ParameterSpec& spec, int stage) {
  Communicator& pipeline = source_.mesh.pipeline();
  Tensor value =
      at::empty(spec.shape, at::TensorOptions(source_.parameters.options().master_dtype())
                                .device(source_.parameters.device()));
  if (pipeline.rank() == stage) {
    const Place& place = places_.at(spec.name);
    value.copy_(source_.parameters.units()[place.unit]->parameters()[place.index].value);
  }
  if (pipeline.size() > 1) pipeline.Broadcast(value, stage);
  return value;
}

Tensor GatheredWeights::WholeBlock(int b, const Tensor& mine) {
  Communicator& tensor = source_.mesh.tensor();
  std::vector<FlatLayout> parts;
  int64_t longest = 0;
  for (const Model& model : tensor_models_)
    longest = std::max(longest, parts.emplace_back(LayoutOf(*model.blocks[b])).numel());
  const Tensor padded = at::zeros({longest}, mine.options());
  padded.narrow(0, 0, mine.numel()).copy_(mine);
  Tensor all = at::empty({longest * tensor.size()}, mine.options());
  tensor.AllGather(all, padded);

  const FlatLayout layout = LayoutOf(*model_.blocks[b]);
  const Tensor whole = EmptyInLargePages(layout.numel(), mine.scalar_type(), mine.device());
  for (int rank = 0; rank < tensor.size(); ++rank) {
    for (int i = 0; i < static_cast<int>(layout.specs().size()); ++i) {
      const ParameterSpec& spec = parts[rank].specs()[i];
      // Whole weights are the same on all ranks. In the whole model's memory a weight lies as its
      // own cut has it, and so it does in the parts.
      int64_t at = rank * longest + parts[rank].offset(i);
      for (const ElementRun& run : RunsInWhole(spec, 0, spec.numel())) {
        whole.narrow(0, layout.offset(i) + run.first, run.count)
            .copy_(all.narrow(0, at, run.count));
        at += run.count;
      }
    }
  }
  return whole;
}

const Model& GatheredWeights::LocalModel() const {
  return tensor_models_.empty() ? model_ : tensor_models_[source_.mesh.tensor().rank()];
}

int64_t GatheredWeights::held_bytes() const {
  if (UsesInPlace() || weights_.empty()) return 0;
  int64_t bytes = 0;
  for (size_t b = 0; b < model_.blocks.size(); ++b) {
    for (size_t i = 0; i < model_.blocks[b]->parameters().size(); ++i)
      bytes +=
          model_.blocks[b]->ties()[i] ? 0 : static_cast<int64_t>(weights_[b][i].value.nbytes());
  }
  return bytes;
}

uint64_t GatheredWeights::HashOfSource() const {
  const at::NoGradGuard no_grad;
  WeightHash mine;
  // Replicas hold the same.
  if (source_.mesh.replicate().rank() == 0) {
    for (const auto& unit : source_.parameters.units()) {
      const Tensor held = unit->owned_compute_weights();  // All (stage 0) or a shard
      const FlatLayout& layout = unit->layout();
      const int64_t begin = unit->shard_begin(), end = begin + layout.shard_numel();
      for (const FlatLayout::Slice& slice : layout.Slices(begin, end)) {
        AddOwnedRuns(layout.specs()[slice.parameter], slice.first,
                     held.narrow(0, slice.offset - unit->owned_begin(), slice.count), mine);
      }
    }
  }
  return SumOfHashes(source_.mesh.control(), mine.Total());
}

uint64_t GatheredWeights::HashOfGathered() const {
  WeightHash hash;
  for (size_t b = 0; b < model_.blocks.size(); ++b) {
    const Block& block = *model_.blocks[b];
    for (size_t i = 0; i < block.parameters().size(); ++i) {
      if (block.ties()[i]) continue;
      const ParameterSpec& spec = block.parameters()[i];
      AddOwnedRuns(spec, 0, InMemoryOrder(weights_[b][i].value, spec), hash);
    }
  }
  const uint64_t mine = hash.Total();
  if (layout_ == Layout::kWhole) return mine;
  // The tensor ranks' parts add up, for each rank of the pipeline.
  const DeviceMesh& mesh = source_.mesh;
  Tensor sums = at::zeros({mesh.pipeline().size()}, at::kLong);
  int64_t& sum = sums.mutable_data_ptr<int64_t>()[mesh.pipeline().rank()];
  sum = static_cast<int64_t>(mine);
  mesh.model_control().AllReduce(sums);
  return static_cast<uint64_t>(sum);
}

}  // namespace shoal
