// What the ranks of a job hold and run, without holding or running it: a rank's units and blocks.
// Ranks along the replicate and shard axes are alike; so, as a rule, are those along the tensor
// axis.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/recipe.pb.h"
#include "models/model.h"
#include "parallel/device_mesh.h"
#include "parallel/pipeline/schedule.h"
#include "parallel/pipeline/stage_split.h"
#include "parallel/unit_plan.h"
#include "trainer/block_runner.h"

namespace shoal {

// A tensor-parallel rank's part of a layer and of the vocabulary.
struct PartWidths {
  int64_t heads = 0;       // Of queries
  int64_t queries = 0;     // Elements a token
  int64_t key_values = 0;  // Of the keys; the values are as many
  int64_t attended = 0;    // Key heads that attention sees (HeadShare)
  int64_t inner = 0;       // Of the MLP,
  int64_t expert = 0;      // of an expert,
  int64_t shared = 0;      // of the experts that tokens share
  int64_t vocabulary = 0;
};

// The parts of the model that tensor-parallel ranks hold.
struct ModelOutline {
  struct Part {
    std::vector<int> ranks;  // Along the tensor axis: their parts have the same shapes
    std::vector<BlockParameters> blocks;
    PartWidths widths;
  };
  Model model;  // As the first rank builds it
  std::vector<Part> parts;

  int num_blocks() const { return static_cast<int>(model.blocks.size()); }
};

// `place`: of the first rank along the tensor and expert axes. Ranks that hold other experts are
// alike. Errors: BuildModel's and DescribeParameters'.
absl::StatusOr<ModelOutline> OutlineModel(const ModelConfig& config, const TensorPlace& place,
                                          const std::vector<std::string>& freeze = {},
                                          const OptimizerSection& optimizer = {});

// A unit of flat weights as its bytes depend on it.
struct UnitSize {
  // A weight that the optimizer takes as a whole.
  struct Whole {
    int64_t offset, numel;       // Of this tensor-parallel rank's part, in the unit
    std::vector<int64_t> shape;  // Of all of it, as in memory

    auto operator<=>(const Whole&) const = default;
  };

  int64_t numel = 0;          // Without padding
  int64_t partial_numel = 0;  // Of whole weights whose gradients tensor-parallel ranks add up
  bool trainable = true;
  bool takes_turns = true;          // In a buffer with units of other blocks
  bool tied_across_stages = false;  // Another pipeline rank holds it too
  bool of_experts = false;          // Of those that ranks share
  bool of_buffers = false;          // Held whole by every rank, in master precision
  std::vector<Whole> wholes = {};
  int count = 1;  // So many are alike

  // Ranks that it is sharded over.
  int shards(const MeshShape& mesh) const {
    return mesh.weight_shards() / (of_experts ? mesh.expert : 1);
  }
  // Which of those a rank of the shard group is: neighbours along shard hold other experts, ranks
  // of a context the same.
  int shard_of(int rank, const MeshShape& mesh) const {
    const int along = rank / mesh.context;
    return (of_experts ? along / mesh.expert : along) * mesh.context + rank % mesh.context;
  }
  int64_t shard_numel(const MeshShape& mesh) const {
    return (numel + shards(mesh) - 1) / shards(mesh);
  }
  int64_t padded_numel(const MeshShape& mesh) const {  // FlatLayout's
    return shard_numel(mesh) * shards(mesh);
  }
};

// `order`, if not null: of which of them each unit is, in the order of PlanUnits.
std::vector<UnitSize> UnitSizesOf(const std::vector<BlockParameters>& blocks,
                                  std::vector<int>* order = nullptr);

// What one pipeline rank, of the tensor-parallel ranks of one part, holds and runs.
struct RankOutline {
  int pipeline = 0;
  int part = 0;  // Of ModelOutline::parts
  std::vector<UnitSize> units;
  std::vector<int> unit_order;     // See UnitSizesOf
  std::vector<BlockRange> chunks;  // Of the model's blocks
  bool trains_embedding = false;   // It runs the vocabulary's table, which is not frozen
  bool trains_head = false;        // It runs the vocabulary's matrix, which is not frozen
};

struct PipelineOutline {
  Schedule frame;  // Without lists: where stages are
  std::vector<BlockRange> stages;
  int tied_ranks = 0;              // Pipeline ranks that hold a weight together
  std::vector<RankOutline> ranks;  // By pipeline rank, then by part
};

// Errors: fewer blocks than stages; a size that the schedule does not take.
absl::StatusOr<PipelineOutline> OutlinePipeline(const ModelOutline& outline, ScheduleKind kind,
                                                int ranks, int chunks, int64_t seq_length);

// Layers of a chunk that are computed again in the backward pass, and those that are not.
struct LayerCounts {
  int kept = 0;
  int recomputed = 0;
  int total() const { return kept + recomputed; }
};
LayerCounts LayersOf(const BlockRange& chunk, int num_blocks, Recompute recompute);

}  // namespace shoal
