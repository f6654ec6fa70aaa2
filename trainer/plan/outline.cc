#include "trainer/plan/outline.h"

#include <algorithm>
#include <tuple>

#include "core/status.h"
#include "models/blocks/embedding.h"
#include "models/blocks/head_share.h"
#include "trainer/recipe_options.h"
#include "trainer/update_rules.h"
#include "trainer/weights_setup.h"

namespace shoal {
namespace {

// Do both parts hold and send the same numbers of bytes?
bool AreAlike(const std::vector<BlockParameters>& a, const std::vector<BlockParameters>& b) {
  for (size_t block = 0; block < a.size(); ++block) {
    for (size_t i = 0; i < a[block].specs.size(); ++i) {
      const ParameterSpec &x = a[block].specs[i], &y = b[block].specs[i];
      if (x.shape != y.shape || x.partial_gradient != y.partial_gradient) return false;
    }
  }
  return true;
}

PartWidths WidthsOf(const ModelConfig& config, const TensorPlace& place) {
  const HeadShare heads(config, place);
  const auto size = [&](int64_t whole) {
    const TensorCut::Range range = EvenRange(whole, place);
    return range.end - range.begin;
  };
  return {.heads = heads.queries(),
          .queries = heads.queries() * config.head_dim,
          .key_values = heads.key_values() * config.head_dim,
          .attended = heads.attended_key_values(),
          .inner = size(config.intermediate_size),
          .expert = size(config.expert_intermediate_size),
          .shared = size(config.shared_expert_size()),
          .vocabulary = size(config.vocab_size)};
}

auto Key(const UnitSize& unit) {
  return std::tuple(unit.numel, unit.partial_numel, unit.trainable, unit.takes_turns,
                    unit.tied_across_stages, unit.of_experts, unit.of_buffers, unit.wholes);
}

// Is the weight trained? A tied one is another block's.
bool IsTrained(const std::vector<BlockParameters>& blocks, int block, size_t parameter) {
  if (const auto& tie = blocks[block].ties[parameter])
    return blocks[tie->block].specs[tie->parameter].trainable;
  return blocks[block].specs[parameter].trainable;
}

}  // namespace

absl::StatusOr<ModelOutline> OutlineModel(const ModelConfig& config, const TensorPlace& first,
                                          const std::vector<std::string>& freeze,
                                          const OptimizerSection& optimizer) {
  ModelOutline outline;
  for (int rank = 0; rank < first.size; ++rank) {
    TensorPlace place = first;
    place.rank = rank;
    SHOAL_ASSIGN_OR_RETURN(Model model, BuildModel(config, place));
    SHOAL_ASSIGN_OR_RETURN(std::vector<BlockParameters> blocks, DescribeParameters(model, freeze));
    MarkWholeUpdates(optimizer, blocks);
    const auto same = std::find_if(outline.parts.begin(), outline.parts.end(),
                                   [&](const auto& part) { return AreAlike(part.blocks, blocks); });
    if (same != outline.parts.end()) {
      same->ranks.push_back(rank);
    } else {
      outline.parts.push_back(
          {.ranks = {rank}, .blocks = std::move(blocks), .widths = WidthsOf(config, place)});
    }
    if (rank == 0) outline.model = std::move(model);
  }
  return outline;
}

std::vector<UnitSize> UnitSizesOf(const std::vector<BlockParameters>& blocks,
                                  std::vector<int>* order) {
  std::vector<UnitSize> units;
  std::vector<std::vector<UnitPlace>> places;
  for (const UnitPlan& plan : PlanUnits(blocks, places)) {
    UnitSize unit{.trainable = plan.trainable,
                  .takes_turns = plan.takes_turns(),
                  .tied_across_stages = plan.specs[0].tied_across_stages,
                  .of_experts = plan.of_experts(),
                  .of_buffers = plan.of_buffers()};
    for (const ParameterSpec& spec : plan.specs) {
      if (spec.whole_update) unit.wholes.push_back({unit.numel, spec.numel(), spec.memory_shape()});
      unit.numel += spec.numel();
      unit.partial_numel += spec.partial_gradient ? spec.full_numel() : 0;
    }
    const auto same = std::find_if(units.begin(), units.end(),
                                   [&](const UnitSize& u) { return Key(u) == Key(unit); });
    if (order != nullptr) order->push_back(static_cast<int>(same - units.begin()));
    if (same != units.end())
      ++same->count;
    else
      units.push_back(unit);
  }
  return units;
}

absl::StatusOr<PipelineOutline> OutlinePipeline(const ModelOutline& outline, ScheduleKind kind,
                                                int ranks, int chunks, int64_t seq_length) {
  SHOAL_RETURN_IF_ERROR(CheckScheduleSize(kind, ranks, /*micro_batches=*/1, chunks));
  PipelineOutline pipeline{
      .frame = {.kind = kind, .ranks = ranks, .micro_batches = 1, .chunks = chunks, .actions = {}}};
  SHOAL_ASSIGN_OR_RETURN(pipeline.stages,
                         StagesOf(outline.model, pipeline.frame.stages(), seq_length));
  pipeline.tied_ranks = static_cast<int>(
      RanksWithTiedWeights(outline.parts[0].blocks, pipeline.frame, pipeline.stages).size());
  const int head = outline.num_blocks() - 1;
  for (int rank = 0; rank < ranks; ++rank) {
    std::vector<BlockRange> own;
    for (int chunk = 0; chunk < chunks; ++chunk)
      own.push_back(pipeline.stages[pipeline.frame.StageOf(rank, chunk)]);
    for (int part = 0; part < static_cast<int>(outline.parts.size()); ++part) {
      const std::vector<BlockParameters>& blocks = outline.parts[part].blocks;
      RankOutline& made = pipeline.ranks.emplace_back(RankOutline{
          .pipeline = rank, .part = part, .units = {}, .unit_order = {}, .chunks = own});
      made.units = UnitSizesOf(OfChunks(blocks, own), &made.unit_order);
      for (const BlockRange& chunk : own) {
        if (chunk.first == 0) made.trains_embedding = IsTrained(blocks, 0, EmbeddingBlock::kTokens);
        if (chunk.end == head + 1)
          made.trains_head =
              IsTrained(blocks, head, /*the matrix, after the norm=*/blocks[head].specs.size() - 1);
      }
    }
  }
  return pipeline;
}

LayerCounts LayersOf(const BlockRange& chunk, int num_blocks, Recompute recompute) {
  LayerCounts layers;
  for (int block = std::max(1, chunk.first); block < std::min(num_blocks - 1, chunk.end); ++block) {
    const bool again =
        recompute == Recompute::kFull || (recompute == Recompute::kSelective && block % 2 == 0);
    ++(again ? layers.recomputed : layers.kept);
  }
  return layers;
}

}  // namespace shoal
