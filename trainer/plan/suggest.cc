#include "trainer/plan/suggest.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/recipe_schema.h"
#include "core/status.h"

namespace shoal {
namespace {

constexpr int64_t kMostSequences = 64;  // Of a micro-batch: larger ones gain nothing

std::vector<int> Divisors(int number) {
  std::vector<int> divisors;
  for (int d = 1; d <= number; ++d) {
    if (number % d == 0) divisors.push_back(d);
  }
  return divisors;
}

class Search {
 public:
  Search(const LoadedRecipe& recipe, int ranks, const Hardware& hardware, Planner& planner,
         int most)
      : recipe_(recipe),
        proto_(recipe.proto),
        ranks_(ranks),
        hardware_(hardware),
        planner_(planner),
        most_(most) {}

  absl::StatusOr<Suggestions> Run() {
    SHOAL_RETURN_IF_ERROR(FindGlobalBatch());
    const ModelConfig& config = planner_.config();
    const int blocks = static_cast<int>(config.num_layers) + 2;
    for (int tensor : Divisors(ranks_)) {
      if (config.num_heads % tensor != 0) continue;
      for (int pipeline : Divisors(ranks_ / tensor)) {
        SetPipeline(pipeline);
        if (pipeline * Chunks() > blocks) break;
        const int context = proto_.parallelism().context_parallel();  // The recipe's own
        if (ranks_ / tensor / pipeline % context != 0) continue;
        if (proto_.parallelism().context_method() == ParallelismSection::ulysses &&
            config.num_heads % (tensor * context) != 0)
          continue;
        const int data = ranks_ / tensor / pipeline / context;
        if (global_ % data != 0) continue;
        for (int replicate : Divisors(data)) {
          const int expert = proto_.parallelism().expert_parallel();  // The recipe's own
          if (data / replicate % expert != 0) continue;
          SHOAL_RETURN_IF_ERROR(TryMesh({.replicate = replicate,
                                         .shard = data / replicate,
                                         .context = context,
                                         .tensor = tensor,
                                         .pipeline = pipeline,
                                         .expert = expert}));
        }
      }
    }
    return std::move(found_);
  }

 private:
  absl::Status FindGlobalBatch() {
    global_ = proto_.training().global_batch_size();
    if (global_ > 0) return absl::OkStatus();
    const auto mesh = PlanMesh(recipe_, ranks_);
    if (!mesh.ok()) {
      return recipe_.ErrorAt("training.global_batch_size",
                             "missing: suggestions keep it, and the recipe's own mesh, which would "
                             "tell it, does not come out");
    }
    SHOAL_ASSIGN_OR_RETURN(const BatchPlan batch, PlanBatch(recipe_, mesh->data_parallel_ranks));
    global_ = batch.global;
    return absl::OkStatus();
  }

  // The recipe's schedule, where it takes so many ranks.
  void SetPipeline(int pipeline) {
    const ParallelismSection& own = recipe_.proto.parallelism();
    ParallelismSection& axes = *proto_.mutable_parallelism();
    axes.set_pipeline_parallel(pipeline);
    axes.set_pipeline_schedule(pipeline == 1 ? ParallelismSection::one_f_one_b
                                             : own.pipeline_schedule());
    axes.set_pipeline_chunks(pipeline == 1 ? 0 : own.pipeline_chunks());
  }

  int Chunks() const {
    const BatchPlan one{.per_device = 1, .accumulation = 1, .global = 1, .equation = ""};
    return JobOf(proto_, {.pipeline = proto_.parallelism().pipeline_parallel()}, one, hardware_)
        .chunks;
  }

  // Sequences of a micro-batch: powers of two, and the recipe's own number.
  std::vector<int64_t> BatchSizes(int64_t share) const {
    std::vector<int64_t> sizes;
    for (int64_t size = 1; size <= std::min(share, kMostSequences); size *= 2) {
      if (share % size == 0) sizes.push_back(size);
    }
    const int64_t own = recipe_.proto.training().per_device_train_batch_size();
    if (own > 0 && share % own == 0 && std::find(sizes.begin(), sizes.end(), own) == sizes.end())
      sizes.push_back(own);
    return sizes;
  }

  absl::Status TryMesh(const MeshShape& mesh) {
    const int64_t share = global_ / (mesh.replicate * mesh.shard);
    const ParallelismSection::PipelineSchedule schedule = proto_.parallelism().pipeline_schedule();
    const bool halves =
        schedule == ParallelismSection::zb_h1 || schedule == ParallelismSection::zbv;
    for (int stage = 0; stage <= (halves ? 1 : 3); ++stage) {
      // Alone there is nothing to share, and replicas of what is whole are more of the same.
      if (stage > 0 ? mesh.weight_shards() == 1 : mesh.replicate > 1) continue;
      if (stage < 3 && proto_.zero().offload_parameters() != no_offload) continue;
      if (stage < 3 && proto_.zero().quantized_weights()) continue;
      if (stage < 2 && proto_.zero().quantized_gradients()) continue;
      proto_.mutable_zero()->set_stage(stage);
      for (int64_t sequences : BatchSizes(share)) {
        const BatchPlan batch{.per_device = sequences,
                              .accumulation = share / sequences,
                              .global = global_,
                              .equation = ""};
        for (auto recompute : {TrainingSection::no_checkpointing, TrainingSection::selective,
                               TrainingSection::full}) {
          proto_.mutable_training()->set_activation_checkpointing(recompute);
          SHOAL_RETURN_IF_ERROR(Try(JobOf(proto_, mesh, batch, hardware_)));
        }
      }
    }
    return absl::OkStatus();
  }

  absl::Status Try(const PlanJob& job) {
    if (job.shares_rows() && job.rows() % job.mesh.tensor != 0) return absl::OkStatus();
    SHOAL_ASSIGN_OR_RETURN(Plan plan, planner_.Make(job));
    ++found_.tried;
    const double bytes = static_cast<double>(plan.fullest().memory.total_bytes());
    found_.least_bytes = found_.tried == 1 ? bytes : std::min(found_.least_bytes, bytes);
    if (bytes > kUsableMemory * hardware_.memory_bytes) return absl::OkStatus();
    ++found_.fitting;
    Suggestion suggestion{.plan = std::move(plan), .time = {}, .overrides = {}};
    suggestion.time = EstimateStep(suggestion.plan, hardware_);
    Keep(std::move(suggestion));
    return absl::OkStatus();
  }

  // Equal times: the one that leaves more memory.
  void Keep(Suggestion suggestion) {
    const auto better = [](const Suggestion& a, const Suggestion& b) {
      if (a.time.total != b.time.total) return a.time.total < b.time.total;
      return a.plan.fullest().memory.total_bytes() < b.plan.fullest().memory.total_bytes();
    };
    std::vector<Suggestion>& best = found_.best;
    if (static_cast<int>(best.size()) == most_ && !better(suggestion, best.back())) return;
    suggestion.overrides = OverridesOf(suggestion.plan.job);
    best.insert(std::upper_bound(best.begin(), best.end(), suggestion, better),
                std::move(suggestion));
    if (static_cast<int>(best.size()) > most_) best.pop_back();
  }

  std::vector<std::string> OverridesOf(const PlanJob& job) const {
    const Recipe& own = recipe_.proto;
    std::vector<std::string> overrides;
    const auto set = [&](const char* key, auto value) {
      overrides.push_back(absl::StrCat(key, "=", value));
    };
    set("parallelism.data_parallel_replicate", job.mesh.replicate);
    set("parallelism.data_parallel_shard", job.mesh.shard);
    set("parallelism.tensor_parallel", job.mesh.tensor);
    set("parallelism.pipeline_parallel", job.mesh.pipeline);
    if (proto_.parallelism().pipeline_schedule() != own.parallelism().pipeline_schedule())
      set("parallelism.pipeline_schedule", NameOf(job.schedule));
    if (proto_.parallelism().pipeline_chunks() != own.parallelism().pipeline_chunks())
      set("parallelism.pipeline_chunks", proto_.parallelism().pipeline_chunks());
    set("zero.stage", job.zero.stage);
    static constexpr const char* kRecompute[] = {"none", "selective", "full"};
    set("training.activation_checkpointing", kRecompute[static_cast<int>(job.recompute)]);
    set("training.global_batch_size", global_);
    set("training.per_device_train_batch_size", job.sequences);
    set("training.gradient_accumulation_steps", job.micro_batches());
    return overrides;
  }

  const LoadedRecipe& recipe_;
  Recipe proto_;  // The one being tried
  const int ranks_;
  const Hardware& hardware_;
  Planner& planner_;
  const int most_;
  int64_t global_ = 0;
  Suggestions found_;
};

}  // namespace

absl::StatusOr<Suggestions> SuggestMeshes(const LoadedRecipe& recipe, int ranks,
                                          const Hardware& hardware, Planner& planner, int most) {
  return Search(recipe, ranks, hardware, planner, most).Run();
}

}  // namespace shoal
