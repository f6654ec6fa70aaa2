#include "trainer/federated/federated_averaging.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>

#include "checkpoint/agreement.h"
#include "core/random.h"
#include "kernels/locked_memory.h"
#include "kernels/optimizer_step.h"
#include "optim/grad_norm.h"
#include "trainer/federated/robust_aggregation.h"

namespace shoal {
namespace {

// Columns of a task's row; rows of tasks that others train are zero, so adding is exact.
// kFinite: the update is, and with it the figures behind.
enum Column { kReported, kFinite, kLoss, kNorm, kTokens, kUnclipped, kColumns };

double* RowOf(Tensor& report, int task) {
  return report.mutable_data_ptr<double>() + task * kColumns;
}

std::vector<Tensor> GradientsOf(const std::vector<OptimizerSlice>& slices) {
  std::vector<Tensor> gradients;
  for (const OptimizerSlice& slice : slices) gradients.push_back(slice.gradients);
  return gradients;
}

}  // namespace

FederatedAveraging::FederatedAveraging(const Options& options, const Parts& parts)
    : options_(options),
      parts_(parts),
      slices_(parts.parameters.optimizer_slices()),
      vector_(slices_) {}

absl::StatusOr<std::unique_ptr<FederatedAveraging>> FederatedAveraging::Create(
    const Options& options, const Parts& parts) {
  auto averaging = std::unique_ptr<FederatedAveraging>(new FederatedAveraging(options, parts));
  SHOAL_RETURN_IF_ERROR(averaging->Prepare());
  return averaging;
}

absl::Status FederatedAveraging::Prepare() {
  const FederatedSection& federated = options_.federated;
  const auto num_clients = static_cast<int64_t>(parts_.clients.size());
  population_.seed = options_.seed;
  for (const std::vector<int64_t>& examples : parts_.clients) {
    population_.steps.push_back(
        LocalSteps(federated, static_cast<int64_t>(examples.size()), options_.batch.global));
  }
  const bool clock = federated.asynchronous().buffer_size() > 0;
  planner_ = clock ? MakeVirtualClock(federated, population_)
                   : MakeSynchronousPlanner(federated, population_);
  clients_a_round_ = static_cast<double>(
      clock ? federated.asynchronous().buffer_size()
            : (federated.clients_per_round() > 0 ? federated.clients_per_round() : num_clients));
  if (clients_a_round_ > static_cast<double>(num_clients)) {
    return absl::InvalidArgumentError(absl::StrCat(
        clients_a_round_, " clients a round, but the data gives ", num_clients, " in all"));
  }
  if (clock && federated.asynchronous().concurrency() > num_clients) {
    return absl::InvalidArgumentError(
        absl::StrCat(federated.asynchronous().concurrency(),
                     " clients at work at a time, but the data gives ", num_clients, " in all"));
  }

  const at::ScalarType dtype = parts_.parameters.options().master_dtype();
  RoundUpdates::Options sums{.federated = federated,
                             .seed = options_.seed,
                             .size = vector_.size(),
                             .dtype = dtype,
                             .group_rank = parts_.mesh.control().rank(),
                             .coordinates = vector_.CoordinatesIn(parts_.model)};
  updates_sum_ = std::make_unique<RoundUpdates>(sums, parts_.outer);
  delta_ = LockedZeros(vector_.size(), dtype, parts_.parameters.device());
  mean_ = at::zeros({vector_.size()}, dtype);
  if (scaffold()) {
    sums.federated = FederatedSection();
    sums.federated.set_update_range(federated.update_range());
    controls_sum_ = std::make_unique<RoundUpdates>(sums, parts_.outer);
    control_ = at::zeros({vector_.size()}, dtype);
  }
  SHOAL_RETURN_IF_ERROR(CheckCohort());
  return is_private() ? PreparePrivacy() : absl::OkStatus();
}

absl::Status FederatedAveraging::CheckCohort() const {
  const FederatedSection& federated = options_.federated;
  const bool coins = federated.sampling() == FederatedSection::poisson;
  absl::Status suits = absl::OkStatus();
  if (const auto& secure = federated.secure_aggregation(); secure.enabled()) {
    // Of coins, the largest cohort that may come: what suits not even that suits none.
    const double clients = coins ? static_cast<double>(parts_.clients.size()) : clients_a_round_;
    suits = MakeMaskGraph({.num_clients = static_cast<int>(clients),
                           .threshold = secure.threshold(),
                           .neighbours = secure.neighbours()})
                .status();
  } else if (federated.aggregation() == FederatedSection::krum) {
    const auto clients = static_cast<int64_t>(clients_a_round_);
    suits = SelectKrum(at::zeros({clients, clients}, at::kDouble), federated.num_byzantine(),
                       federated.krum_selected())
                .status();
  }
  return suits.ok() ? suits : absl::InvalidArgumentError(suits.message());
}

double FederatedAveraging::WeightOf(int64_t client) const {
  return options_.federated.weighting() == FederatedSection::equal
             ? 1.0
             : static_cast<double>(parts_.clients[client].size());
}

RoundUpdates::Round FederatedAveraging::Terms(const RoundPlan& plan) const {
  RoundUpdates::Round terms{.round = plan.round};
  for (const ClientTask& task : plan.tasks) {
    terms.divisors.push_back(WeightOf(task.client));
    terms.weights.push_back(terms.divisors.back() * task.staleness_weight);
  }
  if (is_private()) {
    terms.clip = adaptive_clip_ ? adaptive_clip_->clip() : options_.federated.privacy().clip_norm();
    terms.noise_stddev = update_noise_multiplier_ * terms.clip;
    terms.fixed_divisor = clients_a_round_;
  }
  return terms;
}

double FederatedAveraging::NormOf(const Tensor& vector) const {
  if (parts_.mesh.control().size() == 1) return GlobalNorm({vector});
  std::vector<OptimizerSlice> slices = slices_;
  int64_t offset = 0;
  for (OptimizerSlice& slice : slices) {
    slice.gradients = vector.narrow(0, offset, slice.weights.numel());
    offset += slice.weights.numel();
  }
  return GlobalGradNorm(slices, parts_.mesh.shard_control(), parts_.mesh.model_control());
}

std::vector<int> FederatedAveraging::GroupsOf(const std::vector<ClientStack>& stacks,
                                              const RoundPlan& plan) const {
  if (!remembers()) return AssignStacks(stacks, groups(), options_.federated.assignment());
  // A client goes where its memory is.
  std::vector<int> group_of;
  for (const ClientStack& stack : stacks)
    group_of.push_back(static_cast<int>(plan.tasks[stack.tasks[0]].client % groups()));
  return group_of;
}

absl::Status FederatedAveraging::TakeUpdate(const RoundPlan& plan, const Visit& visit,
                                            Tensor& report) {
  const auto& [task, trainer, copy, copies, start, outcome] = visit;
  const int64_t client = plan.tasks[task].client;
  if (outcome.diverged)
    delta_.fill_(std::numeric_limits<double>::quiet_NaN());
  else
    trainer.ReadUpdate(copy, start, delta_);
  const double norm = NormOf(delta_);
  const double range = options_.federated.update_range();
  Tensor control_change;
  bool fits = true;
  if (scaffold()) {
    // c_i+ - c_i = -c + (start - end) / (steps learning_rate)
    const double scale = static_cast<double>(outcome.updates) * options_.learning_rate.At(round_);
    control_change = scale > 0 ? delta_ / scale - control_ : -control_;
    const double largest =
        std::max(control_change.abs().max().item<double>(), delta_.abs().max().item<double>());
    fits = std::isfinite(largest) && largest <= range;
  }
  SHOAL_ASSIGN_OR_RETURN(
      const bool taken, fits ? updates_sum_->Add(task, delta_, norm) : absl::StatusOr<bool>(false));
  if (!taken) {
    parts_.log.Warning(absl::StrCat("round ", round_ + 1, ": client ", client,
                                    outcome.diverged
                                        ? " is left out: loss or gradients are not finite"
                                        : absl::StrCat(" is left out: its update is not finite, or "
                                                       "a weight moved further than "
                                                       "federated.update_range ",
                                                       range)));
    return absl::OkStatus();
  }
  double* row = RowOf(report, task);
  row[kReported] = 1;
  if (!std::isfinite(norm)) {
    parts_.log.Warning(
        absl::StrCat("round ", round_ + 1, ": client ", client,
                     " sends an update that is not finite; aggregation ",
                     FederatedSection::Aggregation_Name(options_.federated.aggregation()),
                     " bears it or loses the round"));
    return absl::OkStatus();
  }
  row[kFinite] = 1;
  if (scaffold()) {
    SHOAL_RETURN_IF_ERROR(controls_sum_->Add(task, control_change, norm).status());
    Memory& memory = memories_[client];
    if (!memory.control.defined()) memory.control = at::zeros_like(control_);
    memory.control.add_(control_change);
  }
  if (options_.federated.keep_optimizer_state())
    memories_[client].states = trainer.ReadStates(copy, outcome.updates);
  row[kLoss] = outcome.loss;
  row[kNorm] = norm;
  row[kTokens] = static_cast<double>(outcome.tokens) / static_cast<double>(copies);
  row[kUnclipped] = norm <= terms_.clip;
  return absl::OkStatus();
}

absl::Status FederatedAveraging::TrainStack(const RoundPlan& plan, const ClientStack& stack,
                                            Tensor& report) {
  const auto copies = static_cast<int>(stack.tasks.size());
  SHOAL_ASSIGN_OR_RETURN(ClientTrainer* const trainer, parts_.trainer(copies));
  std::vector<ClientBatches::Client> clients;
  std::vector<ClientTrainer::Start> starts;
  std::map<int64_t, Tensor> weights;  // Of versions, where the clients train
  for (int index : stack.tasks) {
    const ClientTask& task = plan.tasks[index];
    Tensor& start_weights = weights[task.version];
    if (!start_weights.defined()) {
      const Tensor& version = versions_.at(task.version);
      start_weights =
          version.to(parts_.parameters.device(), version.scalar_type(), /*non_blocking=*/true);
    }
    clients.push_back({.examples = parts_.clients[task.client],
                       .order_seed = ClientBatches::OrderSeed(options_.seed, task)});
    ClientTrainer::Start start{.weights = start_weights};
    if (remembers()) {
      const auto memory = memories_.find(task.client);
      if (scaffold()) {
        start.correction = memory == memories_.end() || !memory->second.control.defined()
                               ? control_
                               : control_ - memory->second.control;
      }
      if (memory != memories_.end() && memory->second.states)
        start.states = &*memory->second.states;
    }
    starts.push_back(std::move(start));
  }
  ClientBatches batches(parts_.examples, std::move(clients),
                        {.batch = options_.batch,
                         .rank = parts_.mesh.data_parallel_rank(),
                         .ranks = parts_.mesh.data_parallel_size(),
                         .shuffle = options_.shuffle});
  SHOAL_ASSIGN_OR_RETURN(const ClientTrainer::Outcome outcome,
                         trainer->Train({.steps = stack.steps,
                                         .learning_rate = options_.learning_rate.At(round_),
                                         .batches = batches,
                                         .starts = starts,
                                         .seed = ClientBatches::OrderSeed(
                                             options_.seed, plan.tasks[stack.tasks[0]])}));
  if (outcome.diverged && copies > 1) {  // Nobody pays for another: each by itself
    for (int task : stack.tasks)
      SHOAL_RETURN_IF_ERROR(TrainStack(plan, {.tasks = {task}, .steps = stack.steps}, report));
    return absl::OkStatus();
  }
  for (int copy = 0; copy < copies; ++copy) {
    SHOAL_RETURN_IF_ERROR(TakeUpdate(plan,
                                     {.task = stack.tasks[copy],
                                      .trainer = *trainer,
                                      .copy = copy,
                                      .copies = copies,
                                      .start = starts[copy].weights,
                                      .outcome = outcome},
                                     report));
  }
  return absl::OkStatus();
}

absl::Status FederatedAveraging::ServerStep(const std::vector<bool>& survivors,
                                            RoundMetrics& metrics) {
  const absl::Status finished = updates_sum_->Finish(survivors, mean_);
  bool lost = metrics.clients == 0 && update_noise_multiplier_ == 0;
  const auto lose = [&](absl::string_view why) {
    lost = true;
    if (parts_.outer.rank() == 0 && parts_.mesh.control().rank() == 0)
      parts_.log.Warning(absl::StrCat("round ", round_ + 1, " changes nothing: ", why));
  };
  const bool cohorts_vary =
      metrics.dropped > 0 || options_.federated.sampling() == FederatedSection::poisson;
  if (absl::IsFailedPrecondition(finished) || (absl::IsInvalidArgument(finished) && cohorts_vary)) {
    lose(finished.message());
  } else {
    SHOAL_RETURN_IF_ERROR(finished);
  }
  if (scaffold()) {
    Tensor change = at::zeros_like(control_);
    SHOAL_RETURN_IF_ERROR(controls_sum_->Finish(survivors, change));
    control_.add_(change);
  }
  if (lost) return absl::OkStatus();
  const double norm = NormOf(mean_);
  if (!std::isfinite(norm)) {
    lose("more clients sent numbers that are not finite than federated.aggregation bears");
    return absl::OkStatus();
  }
  metrics.grad_norm = norm;
  vector_.Write(mean_, 0, GradientsOf(slices_));
  parts_.optimizer.Step({.learning_rate = options_.federated.server().learning_rate(),
                         .grad_scale = 1.0,
                         .step = ++updates_});
  return absl::OkStatus();
}

RoundMetrics FederatedAveraging::Summarise(const RoundPlan& plan, const Tensor& report,
                                           const std::vector<bool>& survivors) {
  RoundMetrics metrics{.round = round_ + 1, .learning_rate = options_.learning_rate.At(round_)};
  double weights = 0, unclipped = 0, finite = 0;
  for (size_t task = 0; task < plan.tasks.size(); ++task) {
    if (!survivors[task]) {
      ++metrics.dropped;
      continue;
    }
    const double* row = report.const_data_ptr<double>() + task * kColumns;
    const double weight = row[kFinite] * WeightOf(plan.tasks[task].client);
    weights += weight;
    finite += row[kFinite];
    metrics.loss += weight * row[kLoss];
    metrics.client_norm += row[kNorm];
    metrics.tokens += std::llround(row[kTokens]);
    metrics.staleness += static_cast<double>(plan.round - plan.tasks[task].version);
    unclipped += row[kUnclipped];
    ++metrics.clients;
  }
  const double clients = std::max<double>(1, metrics.clients);
  if (weights > 0) metrics.loss /= weights;
  metrics.client_norm /= std::max(1.0, finite);
  metrics.staleness /= clients;
  if (is_private()) {
    metrics.clip = terms_.clip;
    metrics.clipped_share = 1 - unclipped / clients;
  }
  SHOAL_CHECK(
      accountant_
          .Compose(
              {.sampling_rate = SamplingRate(), .noise_multiplier = noise_multiplier_, .rounds = 1})
          .ok());
  if (noise_multiplier_ > 0)
    metrics.epsilon = accountant_.Spent(options_.federated.privacy().delta()).epsilon;
  if (adaptive_clip_) {
    adaptive_clip_->Update(std::llround(unclipped), metrics.clients, clients_a_round_,
                           Philox(options_.seed, StreamId("federated.clip")),
                           static_cast<uint64_t>(round_));
  }
  return metrics;
}

absl::StatusOr<RoundMetrics> FederatedAveraging::RunRound() {
  const at::NoGradGuard no_grad;
  const RoundPlan plan = planner_->Plan(round_);
  Tensor start = at::zeros({vector_.size()}, mean_.options().device(parts_.parameters.device()));
  vector_.Read(WeightsOf(slices_), 0, start);
  versions_[round_] = std::move(start);

  terms_ = Terms(plan);
  SHOAL_RETURN_IF_ERROR(updates_sum_->Begin(terms_));
  if (scaffold()) {
    const std::vector<double> ones(plan.tasks.size(), 1.0);
    SHOAL_RETURN_IF_ERROR(
        controls_sum_->Begin({.round = plan.round,
                              .weights = ones,
                              .divisors = ones,
                              .fixed_divisor = static_cast<double>(parts_.clients.size())}));
  }
  const std::vector<ClientStack> stacks =
      StackTasks(plan, population_, remembers() ? 1 : options_.stack_limit);
  const std::vector<int> group_of = GroupsOf(stacks, plan);
  Tensor report = at::zeros({static_cast<int64_t>(plan.tasks.size()), kColumns}, at::kDouble);
  absl::Status trained = absl::OkStatus();
  for (size_t i = 0; i < stacks.size() && trained.ok() && updates_sum_->open(); ++i) {
    if (group_of[i] != parts_.outer.rank()) continue;
    const at::AutoGradMode grad_mode(true);
    trained = TrainStack(plan, stacks[i], report);
  }
  if (SumOverRanks(parts_.outer, int64_t{trained.ok() ? 0 : 1}) > 0)
    return Agree(parts_.outer, trained);
  if (parts_.outer.size() > 1 && report.numel() > 0) {
    Tensor flat = report.view({-1});
    parts_.outer.AllReduce(flat);
  }
  std::vector<bool> survivors;
  for (int64_t task = 0; task < report.size(0); ++task)
    survivors.push_back(report.const_data_ptr<double>()[task * kColumns + kReported] == 1);

  RoundMetrics metrics = Summarise(plan, report, survivors);
  metrics.imbalance = Imbalance(stacks, group_of, groups());
  SHOAL_RETURN_IF_ERROR(ServerStep(survivors, metrics));
  ++round_;
  tokens_ += metrics.tokens;
  versions_.erase(versions_.begin(), versions_.lower_bound(planner_->OldestVersionNeeded()));
  for (auto& [version, weights] : versions_) weights = weights.cpu();
  return metrics;
}

}  // namespace shoal
