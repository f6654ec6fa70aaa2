#include "tests/trainer/training_job.h"

#include <cmath>
#include <deque>
#include <limits>

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "core/random.h"
#include "core/status.h"
#include "models/weights.h"
#include "parallel/comm/device_communicator.h"
#include "parallel/comm/local_communicator.h"
#include "parallel/comm/staged_communicator.h"
#include "parallel/expert_parallel.h"
#include "tests/trainer/training_models.h"
#include "trainer/objectives/preference_objective.h"
#include "trainer/objectives/reward_objective.h"
#include "trainer/recipe_options.h"
#include "trainer/update_rules.h"
#include "trainer/weights_setup.h"

namespace shoal {
namespace {

constexpr int64_t kGlobalBatch = 36;

// Sequence `index` of an endless stream; its first few targets are ignored, so that ranks have
// different counts.
class RandomSequences final : public BatchSource {
 public:
  // `context`: null, or what batches are cut for.
  RandomSequences(const TrainingJob& job, int rank, const ContextParallel* context)
      : job_(job), rank_(rank), context_(context) {}

  absl::StatusOr<std::vector<Batch>> MicroBatches(int64_t step) override {
    const int64_t rows = kGlobalBatch / (job_.data_ranks() * job_.micro_batches);
    std::vector<Batch> batches;
    for (int m = 0; m < job_.micro_batches; ++m) {
      Batch batch{
          .tokens_BT = at::empty({rows, job_.seq_length}, at::kLong),
          .targets_BT = at::empty({rows, job_.seq_length}, at::kLong),
          .positions_BT =
              at::arange(job_.seq_length, at::kLong).expand({rows, job_.seq_length}).contiguous(),
          .documents_BT = {},
          .sequences_B = at::empty({rows}, at::kLong)};
      const int64_t first = step * kGlobalBatch + (m * job_.data_ranks() + rank_) * rows;
      if (job_.lengths) batch.lengths_B = at::full({rows}, job_.seq_length, at::kLong);
      for (int64_t row = 0; row < rows; ++row) FillRow(batch, row, first + row);
      if (!job_.objective.empty()) {
        const Tensor index_B = at::arange(first, first + rows, at::kDouble);
        batch.named["weight_E"] =
            index_B.view({-1, 2}).select(1, 0).remainder(5).ne(0).to(at::kFloat);
        batch.named["reference_B"] = -20 - index_B.sin();
        batch.named["last_B"] = job_.seq_length - 1 - index_B.remainder(3).to(at::kLong);
      }
      if (job_.documents) SplitDocuments(batch, first);
      batches.push_back(context_ ? context_->OwnPlaces(batch) : std::move(batch));
    }
    return batches;
  }

 private:
  // The index-th sequence in documents of 1 + index % 5 places, then of 2 + index % 5, and so on.
  static void SplitDocuments(Batch& batch, int64_t first) {
    const int64_t B = batch.tokens_BT.size(0), T = batch.tokens_BT.size(1);
    batch.documents_BT = at::empty({B, T}, at::kInt);
    for (int64_t b = 0; b < B; ++b) {
      int64_t length = 1 + (first + b) % 5, number = 0, position = 0;
      for (int64_t t = 0; t < T; ++t, ++position) {
        if (position == length) {
          ++length;
          ++number;
          position = 0;
        }
        batch.documents_BT[b][t] = number;
        batch.positions_BT[b][t] = position;
      }
    }
  }

  void FillRow(Batch& batch, int64_t row, int64_t index) const {
    constexpr int64_t kPrompt = 4;
    batch.sequences_B[row] = index;
    const Philox own(/*seed=*/7, static_cast<uint64_t>(index));
    const Philox of_pair(/*seed=*/8, static_cast<uint64_t>(index / 2));
    const auto token = [&](int64_t t) {
      const Philox& philox = job_.pairs && t < kPrompt ? of_pair : own;
      return static_cast<int64_t>(philox.Bits(t) % kTestVocabulary);
    };
    const int64_t length = job_.pairs ? job_.seq_length - index % 3 : job_.seq_length;
    if (job_.lengths) batch.lengths_B[row] = length;
    for (int64_t t = 0; t < job_.seq_length; ++t) {
      batch.tokens_BT[row][t] = t < length ? token(t) : 0;
      const bool ignored = t < index % 4 || t >= length;
      batch.targets_BT[row][t] = ignored ? Batch::kIgnoreIndex : token(t + 1);
      batch.num_targets += !ignored;
    }
  }

  TrainingJob job_;
  int rank_;
  const ContextParallel* context_;
};

// The first element of the first weight, made not finite before a step on one rank.
class Poison final : public Hook {
 public:
  Poison(const TrainingJob& job, ShardedParameters& parameters, Communicator& comm)
      : job_(job), parameters_(parameters), comm_(comm) {}

  absl::Status AfterStep(const Trainer& trainer, const StepMetrics& metrics) override {
    Tensor weights = parameters_.units()[0]->owned_weights();
    if (comm_.rank() != job_.ranks - 1 && job_.stage != 0) return Sync();
    if (metrics.step == job_.poison_step) {
      saved_ = weights.clone();
      weights.fill_(std::numeric_limits<double>::quiet_NaN());
    } else if (metrics.step == job_.poison_step + 1) {
      weights.copy_(saved_);
    }
    return Sync();
  }

 private:
  absl::Status Sync() {
    parameters_.SyncFromMaster();
    return absl::OkStatus();
  }

  TrainingJob job_;
  ShardedParameters& parameters_;
  Communicator& comm_;
  Tensor saved_;
};

std::unique_ptr<Objective> MakeObjective(const std::string& name) {
  using Kind = PreferenceObjective::Kind;
  if (name == "reward") return std::make_unique<RewardObjective>(/*centering=*/0.1);
  if (name == "dpo")
    return std::make_unique<PreferenceObjective>(
        PreferenceObjective::Options{.kind = Kind::kDpo, .beta = 0.3, .label_smoothing = 0.1});
  if (name == "ipo")
    return std::make_unique<PreferenceObjective>(
        PreferenceObjective::Options{.kind = Kind::kIpo, .beta = 0.3});
  if (name == "simpo")
    return std::make_unique<PreferenceObjective>(
        PreferenceObjective::Options{.kind = Kind::kSimPo, .beta = 2.0});
  SHOAL_CHECK(name.empty()) << name;
  return nullptr;
}

}  // namespace

LoadedRecipe OptimizerRecipe(const TrainingJob& job) {
  LoadedRecipe recipe;
  OptimizerSection& optimizer = *recipe.proto.mutable_optimizer();
  if (job.sgd) {
    optimizer.set_name(OptimizerSection::sgd);
    optimizer.set_momentum(0.9);
  } else {
    optimizer.set_weight_decay(0.1);
  }
  OptimizerSection::Name name;
  if (!job.rule.empty()) {
    SHOAL_CHECK(OptimizerSection::Name_Parse(job.rule, &name)) << job.rule;
    optimizer.set_name(name);
  }
  if (job.groups) {
    OptimizerGroup& slower = *optimizer.add_groups();
    slower.set_pattern("q_proj|c_attn|embed_tokens|wpe");
    slower.set_learning_rate_multiplier(0.3);
    OptimizerGroup& decayed = *optimizer.add_groups();
    decayed.set_pattern("norm|ln_|down_proj");
    decayed.set_weight_decay(0.7);
  }
  if (job.ema_decay > 0) optimizer.mutable_ema()->set_decay(job.ema_decay);
  return recipe;
}

absl::Status BuildTrainingJob(const TrainingJob& job, Communicator& comm,
                              const std::function<absl::Status(JobParts)>& train) {
  SHOAL_ASSIGN_OR_RETURN(DeviceMesh mesh, DeviceMesh::Create(comm, job.mesh()));
  SHOAL_ASSIGN_OR_RETURN(ModelConfig config,
                         ModelConfigFromJson(ConfigOf(job.model, job.layers, job.seq_length)));
  if (job.objective == "reward") UseScoreHead(config);
  if (job.lora) config.lora = {.rank = 2, .alpha = 4, .targets = {LoraOptions::kAllLinear}};
  const std::unique_ptr<Objective> objective = MakeObjective(job.objective);
  std::optional<TensorParallel> tensor;
  if (job.tensor > 1) tensor.emplace(mesh.tensor(), job.sequence_parallel);
  TensorPlace place = tensor ? tensor->place() : TensorPlace();
  std::optional<ContextParallel> context;
  if (job.context > 1) context.emplace(mesh.context(), job.context_method);
  std::optional<ExpertParallel> experts;
  if (mesh.expert() != nullptr) {
    experts.emplace(*mesh.expert());
    place.expert_rank = experts->rank();
    place.expert_size = experts->size();
  }
  SHOAL_ASSIGN_OR_RETURN(const Model model, BuildModel(config, place));
  SHOAL_ASSIGN_OR_RETURN(std::vector<BlockParameters> blocks,
                         DescribeParameters(model, job.freeze));
  const LoadedRecipe recipe = OptimizerRecipe(job);
  MarkWholeUpdates(recipe.proto.optimizer(), blocks);
  SHOAL_RETURN_IF_ERROR(ApplyGroups(recipe, blocks));
  SHOAL_ASSIGN_OR_RETURN(Schedule schedule,
                         MakeSchedule(job.schedule, job.pipeline, job.micro_batches, job.chunks));
  SHOAL_ASSIGN_OR_RETURN(const std::vector<BlockRange> stages,
                         StagesOf(model, schedule.stages(), job.seq_length));
  std::vector<BlockRange> chunks;
  for (int chunk = 0; chunk < job.chunks; ++chunk)
    chunks.push_back(stages[schedule.StageOf(mesh.pipeline().rank(), chunk)]);
  Communicator* tied = mesh.TieStages(RanksWithTiedWeights(blocks, schedule, stages));
  mesh.set_loss_stage(schedule.PlaceOf(schedule.stages() - 1).rank);
  const bool halves = job.schedule == ScheduleKind::kZbH1 || job.schedule == ScheduleKind::kZbV;
  std::unique_ptr<OffloadSpace> offload;
  if (job.offload_optimizer == OffloadTo::kDisk || job.offload_parameters == OffloadTo::kDisk ||
      job.offload_activations == OffloadTo::kDisk) {
    CountTensorMemory();
    SHOAL_ASSIGN_OR_RETURN(offload, OffloadSpace::Open("."));
  }
  std::unique_ptr<ActivationStore> activations;
  if (job.offload_activations != OffloadTo::kNowhere) {
    activations = ActivationStore::Of(
        comm.device(), job.offload_activations == OffloadTo::kDisk ? offload.get() : nullptr);
  }
  ShardedParameters parameters(
      OfChunks(blocks, chunks),
      {.stage = job.stage,
       .compute_dtype = job.dtype,
       .gradient_dtype =
           job.dtype == at::kHalf || (job.dtype == at::kBFloat16 && job.micro_batches > 1)
               ? at::kFloat
               : job.dtype,
       .micro_batches = job.micro_batches,
       .reduce_every_micro_batch = job.deterministic && !halves,
       .overlap = job.overlap,
       .split_master = job.split_master,
       .quantized_weights = job.quantized_weights,
       .quantized_gradients = job.quantized_gradients,
       .offload_optimizer = job.offload_optimizer,
       .offload_parameters = job.offload_parameters,
       .offload = offload.get(),
       .on_device = !comm.device().is_cpu()},
      GroupsOf(mesh, tied));
  ShardedOptimizer optimizer(UpdateRuleOf(recipe.proto.optimizer()), parameters,
                             OptimizerOptionsOf(recipe.proto.optimizer()));
  InitializeWeights(/*seed=*/3, optimizer, parameters);

  BlockRunner runner(
      model, parameters,
      {.tensor = tensor ? &*tensor : nullptr,
       .context = context ? &*context : nullptr,
       .experts = experts ? &*experts : nullptr,
       .router_z_loss = job.router_z_loss,
       .capacity_factor = job.capacity_factor,
       .recompute = job.recompute,
       .offload = activations.get(),
       .dropout_seed = config.dropout.any() ? std::optional<uint64_t>(11) : std::nullopt,
       .objective = objective.get(),
       .schedule = schedule,
       .stages = stages,
       .activations = job.pipeline > 1 ? &mesh.pipeline() : nullptr,
       .gradients = job.pipeline > 1 ? &mesh.pipeline_gradients() : nullptr});
  RandomSequences batches(job, mesh.data_parallel_rank(), context ? &*context : nullptr);
  Trainer trainer(
      {.num_steps = job.steps,
       .max_grad_norm = job.max_grad_norm,
       .router_bias_rate = job.router_bias_rate,
       .learning_rate = {.type = LrSchedule::Type::kCosine, .peak = 0.01, .total_steps = 20},
       .loss_scaling = job.loss_scaling},
      {.mesh = mesh,
       .runner = runner,
       .parameters = parameters,
       .optimizer = optimizer,
       .batches = batches,
       .offload = offload.get()});
  if (job.poison_step >= 0) trainer.AddHook(std::make_unique<Poison>(job, parameters, comm));
  return train({comm, mesh, model, parameters, optimizer, trainer});
}

namespace {

class Record final : public Hook {
 public:
  explicit Record(std::vector<StepMetrics>& steps) : steps_(steps) {}
  absl::Status AfterStep(const Trainer& trainer, const StepMetrics& metrics) override {
    steps_.push_back(metrics);
    return absl::OkStatus();
  }

 private:
  std::vector<StepMetrics>& steps_;
};

}  // namespace

void CollectState(const ShardedOptimizer& optimizer,
                  std::map<std::string, std::vector<double>>& state) {
  for (const auto& piece : optimizer.PiecesToSave()) {
    auto& whole = state[piece.name];
    int64_t numel = 1;
    for (int64_t size : piece.shape) numel *= size;
    whole.resize(numel);
    const OffloadHold hold(piece.data, OffloadAccess::kRead);
    const Tensor data = piece.data.to(at::kCPU, at::kDouble);
    std::copy_n(data.const_data_ptr<double>(), data.numel(), whole.begin() + piece.begin);
  }
}

absl::Status OnDevice(c10::DeviceType type, Communicator& host,
                      const std::function<absl::Status(Communicator&)>& body) {
  if (type == c10::kCPU) return body(host);
  const int devices = c10::impl::VirtualGuardImpl(type).deviceCount();
  const c10::Device device(type, static_cast<c10::DeviceIndex>(host.rank() % devices));
  UseDevice(device);
  return body(*MakeStagedCommunicator(host.Split(/*color=*/0, /*key=*/host.rank()), device));
}

TrainingResult RunTrainingJob(const TrainingJob& job) {
  TrainingResult result;
  std::mutex mutex;
  const auto train = [&](Communicator& comm) {
    return BuildTrainingJob(job, comm, [&](JobParts parts) -> absl::Status {
      std::vector<StepMetrics> steps;
      parts.trainer.AddHook(std::make_unique<Record>(steps));
      SHOAL_RETURN_IF_ERROR(parts.trainer.Run());
      const std::lock_guard<std::mutex> lock(mutex);
      if (comm.rank() == 0) result.steps = steps;
      CollectState(parts.optimizer, result.state);
      return absl::OkStatus();
    });
  };
  const absl::Status status =
      RunRanks(job.ranks, [&](Communicator& host) { return OnDevice(job.device, host, train); });
  EXPECT_TRUE(status.ok()) << status;
  return result;
}

// Losses, norms, weights and moments to the last bit.
void ExpectSameBits(const TrainingResult& got, const TrainingResult& want,
                    const std::string& what) {
  ASSERT_EQ(got.steps.size(), want.steps.size()) << what;
  for (size_t i = 0; i < got.steps.size(); ++i) {
    EXPECT_EQ(got.steps[i].loss, want.steps[i].loss) << what << ", step " << i + 1;
    const double norm = got.steps[i].grad_norm, want_norm = want.steps[i].grad_norm;
    EXPECT_TRUE(norm == want_norm || (std::isnan(norm) && std::isnan(want_norm)))
        << norm << ", not " << want_norm << ": " << what << ", step " << i + 1;
  }
  ASSERT_EQ(got.state.size(), want.state.size()) << what;
  for (const auto& [name, values] : want.state)
    EXPECT_EQ(got.state.at(name), values) << what << ": " << name;
}

void ExpectClose(const TrainingResult& got, const TrainingResult& want, double tolerance,
                 const std::string& what) {
  ASSERT_EQ(got.steps.size(), want.steps.size()) << what;
  for (size_t i = 0; i < got.steps.size(); ++i) {
    EXPECT_NEAR(got.steps[i].loss, want.steps[i].loss, tolerance * std::abs(want.steps[i].loss))
        << what;
    EXPECT_NEAR(got.steps[i].grad_norm, want.steps[i].grad_norm,
                tolerance * want.steps[i].grad_norm)
        << what;
  }
  for (const auto& [name, values] : want.state) {
    double largest = 0;
    for (double v : values) largest = std::max(largest, std::abs(v));
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_NEAR(got.state.at(name)[i], values[i], tolerance * largest)
          << what << ": " << name << "[" << i << "]";
    }
  }
}

const TrainingResult& OnOneRank(const TrainingJob& job) {
  // What the trained weights depend on.
  const TrainingJob alone{.model = job.model,
                          .dtype = job.dtype,
                          .layers = job.layers,
                          .steps = job.steps,
                          .max_grad_norm = job.max_grad_norm,
                          .loss_scaling = job.loss_scaling,
                          .sgd = job.sgd,
                          .rule = job.rule,
                          .groups = job.groups,
                          .ema_decay = job.ema_decay,
                          .freeze = job.freeze,
                          .objective = job.objective,
                          .pairs = job.pairs,
                          .router_z_loss = job.router_z_loss,
                          .capacity_factor = job.capacity_factor,
                          .router_bias_rate = job.router_bias_rate,
                          .lora = job.lora,
                          .seq_length = job.seq_length,
                          .documents = job.documents};
  static auto& known = *new std::deque<std::pair<TrainingJob, TrainingResult>>;
  for (const auto& [other, result] : known) {
    if (other == alone) return result;
  }
  return known.emplace_back(alone, RunTrainingJob(alone)).second;
}

std::string Describe(const TrainingJob& job) {
  std::string text = absl::StrCat(job.model, " stage ", job.stage, ", ", job.mesh().Equation(),
                                  ", ", job.micro_batches, " micro-batches");
  if (job.pipeline > 1)
    absl::StrAppend(&text, ", ", NameOf(job.schedule), " of ", job.chunks, " chunks");
  if (job.context > 1)
    absl::StrAppend(&text,
                    job.context_method == ContextParallel::Method::kRing ? ", ring" : ", ulysses");
  if (!job.sequence_parallel) absl::StrAppend(&text, ", whole rows");
  if (!job.rule.empty()) absl::StrAppend(&text, ", ", job.rule);
  if (job.capacity_factor > 0) absl::StrAppend(&text, ", capacity ", job.capacity_factor);
  return text;
}

}  // namespace shoal
