// The plan of a job: what each kind of rank holds, sends and computes, and how long a step takes.
// Nothing is allocated, read or started: thousands of ranks cost no more than the distinct ones.
//
//   Planner planner(config, freeze);
//   SHOAL_ASSIGN_OR_RETURN(const Plan plan, planner.Make(job));
//   const StepTime time = EstimateStep(plan, hardware);
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "absl/status/statusor.h"
#include "core/recipe.pb.h"
#include "models/model_config.h"
#include "trainer/plan/hardware.h"
#include "trainer/plan/memory.h"
#include "trainer/plan/offload_plan.h"
#include "trainer/plan/outline.h"
#include "trainer/plan/plan_job.h"
#include "trainer/plan/schedule_shape.h"
#include "trainer/plan/traffic.h"

namespace shoal {

// Where the rank computes, but for what has "host" in its name: the host's memory beside a device.
struct RankMemory {
  HeldBytes held;         // Exact
  int64_t optimizer = 0;  // Exact; of the shard rank that holds most, if they differ
  int64_t optimizer_in_host = 0;
  PassBytes passes;     // Estimates
  OffloadPlan offload;  // Exact
  OffloadTo activations = OffloadTo::kNowhere;
  bool on_device = false;

  int64_t held_bytes() const {
    return held.weights + held.gradients + held.master_weights + optimizer + held.gathered;
  }
  // Buffers of what is offloaded to disk are there in turn: those of the passes, those of the
  // update. They are host memory.
  int64_t total_bytes() const {
    const int64_t in_passes = passes.activations + passes.head;
    return held_bytes() +
           (on_device ? in_passes
                      : std::max(in_passes + offload.passes_buffer, offload.update_buffer));
  }
  int64_t aside_in_host() const { return activations == OffloadTo::kHost ? passes.aside : 0; }
  int64_t aside_on_disk() const { return activations == OffloadTo::kDisk ? passes.aside : 0; }
  int64_t host_bytes() const {
    const int64_t in_host = held.weights_in_host + held.gradients_in_host +
                            held.master_weights_in_host + optimizer_in_host + aside_in_host();
    return in_host + (on_device ? std::max(offload.passes_buffer, offload.update_buffer) : 0);
  }
  int64_t disk_bytes() const { return offload.held_bytes() + aside_on_disk(); }
};

// A step's, of one rank.
struct RankWork {
  double product_flops = 0;    // Forward, backward, and forward again where that is recomputed
  double memory_bytes = 0;     // Read or written between the products, and for their weights
  double optimizer_bytes = 0;  // Read or written by the update
};

struct RankPlan {
  int pipeline = 0;         // Its place along the pipeline
  std::vector<int> tensor;  // Places along the tensor axis of the ranks that this stands for
  RankMemory memory;
  Traffic traffic;
  RankWork work;
};

struct Plan {
  PlanJob job;
  std::vector<BlockRange> stages;
  double bubble = 0;
  double model_flops = 0;       // Of a step, over all ranks: forward and backward, nothing twice
  int64_t tied_ranks = 0;       // Pipeline ranks that share a tied weight
  std::vector<RankPlan> ranks;  // By pipeline rank; every rank of the job is like one of them

  const RankPlan& fullest() const;  // The one that holds most
};

// Seconds. Of the slowest rank in its passes, and of the slowest one after them.
struct StepTime {
  double products = 0;
  double memory = 0;  // Between the products
  double tensor = 0;  // Communication along the axis
  double context = 0;
  double expert = 0;
  double shard = 0;
  double replicate = 0;
  double pipeline = 0;  // Activations, gradients, tied weights
  double bubble = 0;    // Waiting for other stages
  double optimizer = 0;
  double total = 0;
};

// Assumed: products reach hardware.matrix_efficiency of their peak; sends cost bytes / bandwidth of
// the slowest link they cross, and a latency for each doubling of the ranks of a collective;
// nothing overlaps, but for sharding where job.zero.overlap says so; all stages wait for the
// slowest.
StepTime EstimateStep(const Plan& plan, const Hardware& hardware);

// Makes plans of one model. What several have in common is found once.
class Planner {
 public:
  // `optimizer` as the jobs' whole_rule has it.
  Planner(ModelConfig config, std::vector<std::string> freeze, OptimizerSection optimizer = {})
      : config_(std::move(config)), freeze_(std::move(freeze)), optimizer_(std::move(optimizer)) {}

  const ModelConfig& config() const { return config_; }

  // Errors: OutlineModel's, OutlinePipeline's, those of the schedule's size.
  absl::StatusOr<Plan> Make(const PlanJob& job);

  // The parts of Make, whose errors have causes of their own.
  absl::StatusOr<const ModelOutline*> Outline(const PlanJob& job);
  absl::StatusOr<const PipelineOutline*> Pipeline(const PlanJob& job);
  absl::StatusOr<const ScheduleShape*> Shape(const PlanJob& job);

 private:
  ModelConfig config_;
  std::vector<std::string> freeze_;
  OptimizerSection optimizer_;
  std::map<std::tuple<int, bool, int>, ModelOutline> outlines_;
  std::map<std::tuple<int, bool, int, int, int, ScheduleKind, int64_t>, PipelineOutline> pipelines_;
  std::map<std::tuple<ScheduleKind, int, int, int>, ScheduleShape> shapes_;
};

}  // namespace shoal
