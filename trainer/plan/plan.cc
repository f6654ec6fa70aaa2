#include "trainer/plan/plan.h"

#include <algorithm>
#include <cmath>

#include "core/status.h"

namespace shoal {
namespace {

double ElementBytes(at::ScalarType dtype) { return static_cast<double>(c10::elementSize(dtype)); }

// Each tensor that a pass keeps is written and read forward, read backward, and its gradient
// written and read.
constexpr double kTimesTouched = 5;

RankWork WorkOf(const PlanJob& job, const ModelOutline& model, const RankOutline& rank) {
  const double rows = static_cast<double>(job.rows()), m = job.micro_batches();
  RankWork work;
  for (const BlockRange& chunk : rank.chunks) {
    double flops = 0, again = 0;  // Of a forward pass, a token
    for (int block = chunk.first; block < chunk.end; ++block) {
      const double cost = model.model.blocks[block]->ForwardFlopsPerToken(job.seq_length);
      flops += cost;
      const LayerCounts layer = LayersOf({block, block + 1}, model.num_blocks(), job.recompute);
      if (layer.recomputed > 0) again += cost;
      if (layer.total() > 0) {
        const auto kept = static_cast<double>(LayerBytes(
            job, model.model.config, model.parts[rank.part].widths, /*layer=*/block - 1));
        work.memory_bytes += m * kept * (kTimesTouched + 2 * layer.recomputed);
      }
    }
    work.product_flops += (3 * flops + again) * rows * m / job.mesh.tensor;
  }
  // Weights are read forward and backward, their gradients read and written.
  const double weight_bytes =
      2 * ElementBytes(job.zero.compute_dtype) + 2 * ElementBytes(job.zero.gradient_dtype);
  double numel = 0;
  for (const UnitSize& unit : rank.units)
    numel += static_cast<double>(unit.count) * static_cast<double>(unit.numel);
  work.memory_bytes += m * numel * weight_bytes;
  // The update reads gradients; it reads and writes weights and states; it writes the rounded copy,
  // which is a part of weights that are split.
  const double master = ElementBytes(job.zero.master_dtype());
  const double update =
      ElementBytes(job.zero.gradient_dtype) + 2 * master +
      (job.zero.has_master_copy() && !job.zero.split_master ? ElementBytes(job.zero.compute_dtype)
                                                            : 0);
  work.optimizer_bytes = update * static_cast<double>(OwnedNumel(rank.units, job.zero, job.mesh)) +
                         2 * static_cast<double>(OptimizerBytesOf(rank.units, job) +
                                                 OffloadPlanOf(rank, job).optimizer);
  return work;
}

// Seconds that a rank's calls along one axis take.
class AxisClock {
 public:
  // Groups of `size` ranks whose numbers lie `stride` apart.
  AxisClock(const Hardware& hardware, int64_t stride, int size)
      : link_(hardware.LinkOver(stride * size)), steps_(std::ceil(std::log2(std::max(size, 2)))) {}

  double Of(const AxisTraffic& traffic) const {
    return static_cast<double>(traffic.bytes) / link_.bytes_per_second +
           static_cast<double>(traffic.calls) * steps_ * link_.latency_seconds;
  }

 private:
  const Hardware::Link& link_;
  double steps_;
};

}  // namespace

const RankPlan& Plan::fullest() const {
  return *std::max_element(ranks.begin(), ranks.end(), [](const RankPlan& a, const RankPlan& b) {
    return a.memory.total_bytes() < b.memory.total_bytes();
  });
}

StepTime EstimateStep(const Plan& plan, const Hardware& hardware) {
  const PlanJob& job = plan.job;
  const MeshShape& mesh = job.mesh;
  // Numbers of neighbours along an axis differ by its stride (device_mesh.h).
  const int64_t contexts = mesh.tensor, shards = contexts * mesh.context,
                replicas = shards * mesh.shard, stages = replicas * mesh.replicate;
  const AxisClock tensor(hardware, 1, mesh.tensor), context(hardware, contexts, mesh.context),
      shard(hardware, contexts, mesh.weight_shards()),
      replicate(hardware, replicas, mesh.replicate), tied(hardware, stages, mesh.pipeline);
  const AxisClock expert(hardware, shards, mesh.expert);
  const AxisClock pipeline(hardware, stages, std::min(mesh.pipeline, 2));
  const double flops = hardware.MatrixFlopsOf(job.zero.compute_dtype) * hardware.matrix_efficiency;

  // Two halves of a step: the passes, and what follows them. Each lasts as long as the slowest
  // rank's.
  StepTime passes, after;
  for (const RankPlan& rank : plan.ranks) {
    const Traffic& traffic = rank.traffic;
    StepTime here{.products = rank.work.product_flops / flops,
                  .memory = rank.work.memory_bytes / hardware.memory_bytes_per_second,
                  .tensor = tensor.Of(traffic.tensor),
                  .context = context.Of(traffic.context),
                  .expert = expert.Of(traffic.expert),
                  .shard = shard.Of(traffic.shard_passes),
                  .pipeline = pipeline.Of(traffic.activations) + pipeline.Of(traffic.gradients)};
    if (job.zero.overlap) here.shard = std::max(0.0, here.shard - here.products - here.memory);
    here.total = here.products + here.memory + here.tensor + here.context + here.expert +
                 here.shard + here.pipeline;
    if (here.total > passes.total) passes = here;

    StepTime end{.shard = shard.Of(traffic.shard_end),
                 .replicate = replicate.Of(traffic.replicate),
                 .pipeline = tied.Of(traffic.tied),
                 .optimizer = rank.work.optimizer_bytes / hardware.memory_bytes_per_second};
    end.total = end.shard + end.replicate + end.pipeline + end.optimizer;
    if (end.total > after.total) after = end;
  }
  StepTime step = passes;
  step.bubble = passes.total / (1 - plan.bubble) - passes.total;
  step.shard += after.shard;
  step.pipeline += after.pipeline;
  step.replicate = after.replicate;
  step.optimizer = after.optimizer;
  step.total = passes.total + step.bubble + after.total;
  return step;
}

absl::StatusOr<const ModelOutline*> Planner::Outline(const PlanJob& job) {
  const auto key = std::tuple(job.mesh.tensor, job.sequence_parallel, job.mesh.expert);
  auto found = outlines_.find(key);
  if (found == outlines_.end()) {
    TensorPlace place;
    if (job.mesh.tensor > 1)
      place = {.size = job.mesh.tensor, .sequence_parallel = job.sequence_parallel};
    place.expert_size = job.mesh.expert;
    SHOAL_ASSIGN_OR_RETURN(ModelOutline made, OutlineModel(config_, place, freeze_, optimizer_));
    found = outlines_.emplace(key, std::move(made)).first;
  }
  return &found->second;
}

absl::StatusOr<const PipelineOutline*> Planner::Pipeline(const PlanJob& job) {
  SHOAL_ASSIGN_OR_RETURN(const ModelOutline* model, Outline(job));
  const auto key = std::tuple(job.mesh.tensor, job.sequence_parallel, job.mesh.expert,
                              job.mesh.pipeline, job.chunks, job.schedule, job.seq_length);
  auto found = pipelines_.find(key);
  if (found == pipelines_.end()) {
    SHOAL_ASSIGN_OR_RETURN(
        PipelineOutline made,
        OutlinePipeline(*model, job.schedule, job.mesh.pipeline, job.chunks, job.seq_length));
    found = pipelines_.emplace(key, std::move(made)).first;
  }
  return &found->second;
}

absl::StatusOr<const ScheduleShape*> Planner::Shape(const PlanJob& job) {
  const auto key = std::tuple(job.schedule, job.mesh.pipeline, job.micro_batches(), job.chunks);
  auto found = shapes_.find(key);
  if (found == shapes_.end()) {
    SHOAL_ASSIGN_OR_RETURN(
        ScheduleShape made,
        ScheduleShape::Make(job.schedule, job.mesh.pipeline, job.micro_batches(), job.chunks));
    found = shapes_.emplace(key, std::move(made)).first;
  }
  return &found->second;
}

absl::StatusOr<Plan> Planner::Make(const PlanJob& job) {
  SHOAL_ASSIGN_OR_RETURN(const ModelOutline* model, Outline(job));
  SHOAL_ASSIGN_OR_RETURN(const PipelineOutline* pipeline, Pipeline(job));
  SHOAL_ASSIGN_OR_RETURN(const ScheduleShape* schedule, Shape(job));
  Plan plan{.job = job,
            .stages = pipeline->stages,
            .bubble = schedule->bubble(),
            .model_flops = 3 * model->model.ForwardFlopsPerToken(job.seq_length) *
                           static_cast<double>(job.tokens_per_step()),
            .tied_ranks = pipeline->tied_ranks,
            .ranks = {}};
  for (const RankOutline& rank : pipeline->ranks) {
    const int64_t states = OptimizerBytesOf(rank.units, job);
    const bool in_host = job.zero.updates_on_host();
    plan.ranks.push_back({.pipeline = rank.pipeline,
                          .tensor = model->parts[rank.part].ranks,
                          .memory = {.held = HeldBytesOf(rank.units, job.zero, job.mesh),
                                     .optimizer = in_host ? 0 : states,
                                     .optimizer_in_host = in_host ? states : 0,
                                     .passes = PassBytesOf(job, *model, rank, *schedule),
                                     .offload = OffloadPlanOf(rank, job),
                                     .activations = job.offload_activations,
                                     .on_device = job.zero.on_device},
                          .traffic = TrafficOf(job, *model, *pipeline, rank),
                          .work = WorkOf(job, *model, rank)});
  }
  return plan;
}

}  // namespace shoal
