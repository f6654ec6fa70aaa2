// Plans for programs.
#include <algorithm>

#include <nlohmann/json.hpp>

#include "core/dtype.h"
#include "models/json.h"
#include "trainer/plan/plan_report.h"

namespace shoal {
namespace {

Json MeshJson(const MeshShape& mesh) {
  return {{"ranks", mesh.num_ranks()}, {"replicate", mesh.replicate}, {"shard", mesh.shard},
          {"context", mesh.context},   {"tensor", mesh.tensor},       {"pipeline", mesh.pipeline},
          {"expert", mesh.expert}};
}

Json MemoryJson(const RankMemory& memory) {
  return {{"weights", memory.held.weights},
          {"gradients", memory.held.gradients},
          {"master_weights", memory.held.master_weights},
          {"optimizer_states", memory.optimizer},
          {"gathered_units", memory.held.gathered},
          {"held", memory.held_bytes()},
          {"activations_estimate", memory.passes.activations},
          {"logits_estimate", memory.passes.head},
          {"read_ahead", memory.offload.passes_buffer},
          {"update_buffers", memory.offload.update_buffer},
          {"total_estimate", memory.total_bytes()},
          {"host",
           {{"weights", memory.held.weights_in_host},
            {"gradients", memory.held.gradients_in_host},
            {"master_weights", memory.held.master_weights_in_host},
            {"optimizer_states", memory.optimizer_in_host},
            {"activations_estimate", memory.aside_in_host()},
            {"total_estimate", memory.host_bytes()}}},
          {"disk",
           {{"weights", memory.offload.weights},
            {"master_weights", memory.offload.master_weights},
            {"optimizer_states", memory.offload.optimizer},
            {"activations_estimate", memory.aside_on_disk()},
            {"read", memory.offload.read},
            {"written", memory.offload.written},
            {"activations_moved_estimate",
             memory.activations == OffloadTo::kDisk ? memory.passes.moved : 0}}}};
}

Json TrafficJson(const Traffic& traffic) {
  return {{"shard", traffic.shard().bytes},
          {"replicate", traffic.replicate.bytes},
          {"context", traffic.context.bytes},
          {"tensor", traffic.tensor.bytes},
          {"expert", traffic.expert.bytes},
          {"pipeline_activations", traffic.activations.bytes},
          {"pipeline_gradients", traffic.gradients.bytes},
          {"tied_weights", traffic.tied.bytes},
          {"total", traffic.total_bytes()}};
}

Json TimeJson(const StepTime& time) {
  return {{"products", time.products},   {"memory", time.memory},       {"tensor", time.tensor},
          {"shard", time.shard},         {"replicate", time.replicate}, {"pipeline", time.pipeline},
          {"context", time.context},     {"expert", time.expert},       {"bubble", time.bubble},
          {"optimizer", time.optimizer}, {"total", time.total}};
}

Json JobJson(const Plan& plan) {
  static constexpr const char* kRecompute[] = {"none", "selective", "full"};
  const PlanJob& job = plan.job;
  Json stages = Json::array();
  for (const BlockRange& stage : plan.stages) stages.push_back(stage.size());
  return {{"mesh", MeshJson(job.mesh)},
          {"zero_stage", job.zero.stage},
          {"dtype", DtypeName(job.zero.compute_dtype)},
          {"gradient_dtype", DtypeName(job.zero.gradient_dtype)},
          {"overlap", job.zero.overlap},
          {"sequences", job.sequences},
          {"micro_batches", job.micro_batches()},
          {"tokens_per_step", job.tokens_per_step()},
          {"activation_checkpointing", kRecompute[static_cast<int>(job.recompute)]},
          {"schedule", std::string(NameOf(job.schedule))},
          {"stage_blocks", std::move(stages)},
          {"bubble", plan.bubble}};
}

Json FrameJson(const PlanFrame& frame) {
  return {{"recipe", frame.recipe},
          {"model", frame.model},
          {"hardware",
           {{"name", frame.hardware.name},
            {"source", frame.hardware.source},
            {"ranks_per_host", frame.hardware.ranks_per_host},
            {"memory_bytes", frame.hardware.memory_bytes}}}};
}

std::string Text(const Json& json) {
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace

std::string PlanJson(const PlanFrame& frame, const Plan& plan) {
  Json json = FrameJson(frame);
  json.update(JobJson(plan));
  json["fits"] = MemoryVerdict(plan, frame.hardware).empty();
  const StepTime time = EstimateStep(plan, frame.hardware);
  json["step_seconds_estimate"] = TimeJson(time);
  Json& ranks = json["ranks"] = Json::array();
  for (const RankPlan& rank : plan.ranks) {
    ranks.push_back({{"pipeline", rank.pipeline},
                     {"tensor", rank.tensor},
                     {"memory_bytes", MemoryJson(rank.memory)},
                     {"sent_bytes", TrafficJson(rank.traffic)}});
  }
  return Text(json);
}

std::string SuggestionsJson(const PlanFrame& frame, const Suggestions& suggestions) {
  Json json = FrameJson(frame);
  json["tried"] = suggestions.tried;
  json["fitting"] = suggestions.fitting;
  json["least_bytes"] = suggestions.least_bytes;
  Json& best = json["best"] = Json::array();
  for (const Suggestion& suggestion : suggestions.best) {
    Json entry = JobJson(suggestion.plan);
    entry["memory_bytes_estimate"] = suggestion.plan.fullest().memory.total_bytes();
    int64_t sent = 0;
    for (const RankPlan& rank : suggestion.plan.ranks)
      sent = std::max(sent, rank.traffic.total_bytes());
    entry["sent_bytes"] = sent;
    entry["step_seconds_estimate"] = TimeJson(suggestion.time);
    entry["overrides"] = suggestion.overrides;
    best.push_back(std::move(entry));
  }
  return Text(json);
}

}  // namespace shoal
