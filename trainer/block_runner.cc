#include "trainer/block_runner.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full_like.h>
#include <torch/csrc/autograd/autograd.h>

#include "core/scalar_sum.h"
#include "core/status.h"
#include "core/trace.h"
#include "parallel/tensor_parallel.h"
#include "trainer/router_bias.h"

namespace shoal {

RunnerOptions OneStage(const Model& model, int micro_batches) {
  return {.schedule = *MakeSchedule(ScheduleKind::k1F1B, 1, micro_batches, 1),
          .stages = {{0, static_cast<int>(model.blocks.size())}}};
}

namespace {

std::string StageLabel(int stage) { return "stage " + std::to_string(stage); }

}  // namespace

struct BlockRunner::Step {
  std::vector<DeviceBatch> micro_batches;
  double denominator;  // Divided by the next
  double loss_scale;
  std::optional<RouterTraining> routers;  // Of models with experts
  ObjectiveMetrics& metrics;
  RoutingTotals& routing;
  std::vector<std::map<int, ChunkPass>> passes;  // [chunk][micro-batch]
  Box activations, gradients;
  ScalarSum loss;
};

BlockRunner::BlockRunner(const Model& model, ShardedParameters& parameters, RunnerOptions options)
    : model_(model), parameters_(parameters), options_(std::move(options)) {
  int local = 0;
  for (int chunk = 0; chunk < options_.schedule.chunks; ++chunk) {
    first_local_.push_back(local);
    local += options_.stages[StageOfChunk(chunk)].size();
  }
  for (const Action& action : options_.schedule.actions[rank()])
    splits_backward_ |= action.kind == Action::Kind::kBackwardWeight;
}

int BlockRunner::Local(int chunk, int block) const {
  return first_local_[chunk] + block - options_.stages[StageOfChunk(chunk)].first;
}

double BlockRunner::Count(const Batch& batch) const {
  return options_.objective ? options_.objective->Count(batch)
                            : static_cast<double>(batch.num_targets);
}

ObjectiveMetrics BlockRunner::MakeMetrics() const {
  return ObjectiveMetrics(options_.objective ? options_.objective->metric_names()
                                             : std::vector<std::string>());
}

std::optional<SharedRows> BlockRunner::Share(const Batch& batch) const {
  constexpr int64_t kMultiple = 32;  // Products of few different sizes
  // Routers count every token of a sequence, sequences that begin alike drop different things, and
  // ranks that share sequences have pieces of them.
  if (model_.config.num_experts > 0 || options_.dropout_seed || options_.context)
    return std::nullopt;
  return ShareRows(batch, kMultiple * (options_.tensor ? options_.tensor->place().size : 1));
}

ForwardContext BlockRunner::Context(const DeviceBatch& batch, double denominator) const {
  ForwardContext context{.weights = {},
                         .batch = &batch.batch,
                         .host_batch = batch.host,
                         .shared_rows = batch.shared ? &*batch.shared : nullptr,
                         .loss_denominator = denominator,
                         .tensor = options_.tensor,
                         .context = options_.context,
                         .experts = options_.experts};
  if (options_.objective) {
    context.head_mode = options_.objective->head_mode();
    context.temperature = options_.objective->temperature();
  }
  return context;
}

ForwardContext BlockRunner::TrainingContext(const Step& step, int micro_batch) const {
  ForwardContext context = Context(step.micro_batches[micro_batch], step.denominator);
  if (step.routers) context.routers = &*step.routers;
  context.label_smoothing = options_.label_smoothing;
  context.dropout_seed = options_.dropout_seed;
  return context;
}

Activations BlockRunner::RunHead(const ForwardContext& context, const Activations& in,
                                 ObjectiveMetrics& metrics) const {
  Activations out = model_.blocks.back()->Forward(context, in);
  if (options_.objective) {
    out.loss = options_.objective->Loss(*context.batch, out, metrics) / context.loss_denominator;
  }
  return out;
}

Tensor BlockRunner::Take(Box& box, Communicator* comm, int from_stage, int stage, int micro_batch,
                         at::IntArrayRef places) const {
  const int from = options_.schedule.PlaceOf(from_stage).rank;
  if (from == rank()) return box.extract({stage, micro_batch}).mapped();
  const int64_t B = places[0], T = places[1];
  const bool shares_rows = options_.tensor && options_.tensor->sequence_parallel();
  Tensor tensor =
      at::empty({shares_rows ? 1 : B, shares_rows ? B * T / options_.tensor->place().size : T,
                 model_.config.hidden_size},
                at::TensorOptions(parameters_.options().compute_dtype).device(comm->device()));
  comm->Recv(tensor, from);
  return tensor;
}

void BlockRunner::Give(Box& box, Communicator* comm, int to_stage, int micro_batch,
                       const Tensor& tensor) const {
  const int to = options_.schedule.PlaceOf(to_stage).rank;
  if (to == rank())
    box[{to_stage, micro_batch}] = tensor;
  else
    comm->Send(tensor.contiguous(), to);
}

std::unique_ptr<KeptTensors> BlockRunner::MakeAside() const {
  return options_.offload ? options_.offload->Make() : nullptr;
}

void BlockRunner::Forward(Step& step, int chunk, int micro_batch, bool backward_is_next) {
  const int stage = StageOfChunk(chunk);
  const BlockRange range = options_.stages[stage];
  ChunkPass& pass = step.passes[chunk][micro_batch];
  TraceSpan span(TraceKind::kOther, "forward", {.stage = stage, .micro_batch = micro_batch});
  span.Label([&] { return StageLabel(stage); });
  Tensor hidden;
  if (stage > 0) {
    const std::unique_ptr<KeptTensors> received = MakeAside();
    const TensorMemoryScope memory(received.get());
    hidden = Take(step.activations, options_.activations, stage - 1, stage, micro_batch,
                  TrainingContext(step, micro_batch).tokens().sizes());
  }
  for (int block = range.first; block < range.end; ++block) {
    TraceSpan block_span(TraceKind::kOther, "forward",
                         {.stage = stage, .micro_batch = micro_batch});
    block_span.Label([&] { return model_.BlockName(block); });
    BlockPass& made = pass.blocks.emplace_back();
    const bool is_layer = block > 0 && !IsHead(block);
    made.recompute = is_layer && (options_.recompute == Recompute::kFull ||
                                  (options_.recompute == Recompute::kSelective && block % 2 == 0));
    if (hidden.defined()) {
      made.in.hidden_BTC = hidden.detach();
      made.in.hidden_BTC.set_requires_grad(true);
    }
    ForwardContext context = TrainingContext(step, micro_batch);
    // The head adds its gradients as it computes, if nothing comes between.
    context.unit_gradient = IsHead(block) && backward_is_next && !options_.objective;
    if (context.unit_gradient) {
      parameters_.ZeroGradients(Local(chunk, block), micro_batch);
      pass.head_zeroed = true;
    }
    context.weights = parameters_.BeginForward(
        Local(chunk, block), block + 1 < range.end ? Local(chunk, block + 1) : -1);
    const at::AutoGradMode grad_mode(!made.recompute);
    if (!IsHead(block)) made.aside = MakeAside();
    {
      const TensorMemoryScope memory(made.aside.get());
      made.out = IsHead(block) ? RunHead(context, made.in, step.metrics)
                               : model_.blocks[block]->Forward(context, made.in);
    }
    if (made.out.routing) step.routing.Add(block - 1, *made.out.routing);
    hidden = made.out.hidden_BTC;
    if (made.recompute) made.out = {};
    if (!made.aside) continue;
    made.aside->Leave(hidden);  // Of the block that reads it
    made.aside->Join(made.in.hidden_BTC);
    made.aside->PutAside();
  }
  if (IsHead(range.end - 1))
    step.loss.Add(pass.blocks.back().out.loss);
  else
    Give(step.activations, options_.activations, stage + 1, micro_batch, hidden.detach());
}

void BlockRunner::BlockBackward(Step& step, int chunk, int micro_batch, int block, ChunkPass& pass,
                                Tensor& gradient) {
  TraceSpan span(TraceKind::kOther, "backward",
                 {.stage = StageOfChunk(chunk), .micro_batch = micro_batch});
  span.Label([&] { return model_.BlockName(block); });
  BlockPass made = std::move(pass.blocks.back());
  pass.blocks.pop_back();
  if (made.aside) made.aside->Bring();
  if (!pass.blocks.empty() && pass.blocks.back().aside) pass.blocks.back().aside->Prefetch();
  const int local = Local(chunk, block);
  if (!splits_backward_ && !(IsHead(block) && pass.head_zeroed))
    parameters_.ZeroGradients(local, micro_batch);
  const bool is_first = block == options_.stages[StageOfChunk(chunk)].first;
  const std::span<const Parameter> weights =
      parameters_.BeginBackward(local, is_first ? -1 : local - 1);
  if (made.recompute) {
    const TraceSpan again(TraceKind::kOther, "recompute");
    ForwardContext context = TrainingContext(step, micro_batch);
    context.weights = weights;
    made.out = model_.blocks[block]->Forward(context, made.in);
  }
  const Tensor& root = IsHead(block) ? made.out.loss : made.out.hidden_BTC;
  if (made.out.router_loss.defined()) {
    torch::autograd::backward({root, made.out.router_loss},
                              {gradient, at::full_like(made.out.router_loss, step.loss_scale)});
  } else if (root.requires_grad()) {
    torch::autograd::backward(
        {root}, IsHead(block) ? std::vector<Tensor>{} : std::vector<Tensor>{gradient});
  }
  gradient = made.in.hidden_BTC.defined() ? made.in.hidden_BTC.grad() : Tensor();
  if (!splits_backward_) parameters_.EndBackward(local, micro_batch);
}

void BlockRunner::Backward(Step& step, int chunk, int micro_batch, bool split) {
  const int stage = StageOfChunk(chunk);
  const BlockRange range = options_.stages[stage];
  ChunkPass& pass = step.passes[chunk].at(micro_batch);
  TraceSpan span(TraceKind::kOther, "backward", {.stage = stage, .micro_batch = micro_batch});
  span.Label([&] { return StageLabel(stage); });
  Tensor gradient;
  if (!IsHead(range.end - 1)) {
    gradient = Take(step.gradients, options_.gradients, stage + 1, stage, micro_batch,
                    TrainingContext(step, micro_batch).tokens().sizes());
  }
  {
    std::unique_ptr<DeferWeightGradients> defer;
    if (split) defer = std::make_unique<DeferWeightGradients>(pass.weight_work);
    for (int block = range.end - 1; block >= range.first; --block)
      BlockBackward(step, chunk, micro_batch, block, pass, gradient);
  }
  if (stage > 0) Give(step.gradients, options_.gradients, stage - 1, micro_batch, gradient);
  if (!split) step.passes[chunk].erase(micro_batch);
}

double BlockRunner::ForwardBackward(std::span<const Batch> micro_batches, const StepCounts& counts,
                                    ObjectiveMetrics& metrics, RoutingTotals& routing) {
  using enum Action::Kind;
  const std::vector<Action>& actions = options_.schedule.actions[rank()];
  SHOAL_CHECK(static_cast<int>(micro_batches.size()) == options_.schedule.micro_batches);
  Step step{.micro_batches = {},
            .denominator = counts.denominator / counts.loss_scale,
            .loss_scale = counts.loss_scale,
            .routers = std::nullopt,
            .metrics = metrics,
            .routing = routing,
            .passes = std::vector<std::map<int, ChunkPass>>(options_.schedule.chunks)};
  for (const Batch& batch : micro_batches) step.micro_batches.push_back(Move(batch, Share(batch)));
  if (model_.config.num_experts > 0) {
    step.routers = {.balance_coefficient = model_.config.router_balance_loss,
                    .z_coefficient = options_.router_z_loss,
                    .capacity_factor = options_.capacity_factor,
                    .num_tokens = counts.tokens};
  }
  const int num_blocks = parameters_.num_blocks(), last = options_.schedule.micro_batches - 1;
  // Halves of different micro-batches interleave: gradients add up over the step, then reduce.
  for (int block = num_blocks - 1; splits_backward_ && block >= 0; --block)
    parameters_.ZeroGradients(block, /*micro_batch=*/0);
  for (size_t i = 0; i < actions.size(); ++i) {
    const auto [kind, chunk, micro_batch] = actions[i];
    switch (kind) {
      case kForward:
        Forward(step, chunk, micro_batch,
                i + 1 < actions.size() && actions[i + 1] == Action{kBackward, chunk, micro_batch});
        break;
      case kBackward:
      case kBackwardInput:
        Backward(step, chunk, micro_batch, kind == kBackwardInput);
        break;
      case kBackwardWeight: {
        TraceSpan span(TraceKind::kOther, "backward of weights",
                       {.stage = StageOfChunk(chunk), .micro_batch = micro_batch});
        span.Label([&] { return StageLabel(StageOfChunk(chunk)); });
        for (const auto& product : step.passes[chunk].at(micro_batch).weight_work) product();
        step.passes[chunk].erase(micro_batch);
        break;
      }
    }
  }
  for (int block = num_blocks - 1; splits_backward_ && block >= 0; --block)
    parameters_.EndBackward(block, last);
  parameters_.FinishGradients();
  return step.loss.Read() / counts.loss_scale;
}

Activations BlockRunner::RunStages(const ForwardContext& base) {
  Box handed_over;
  const int num_stages = static_cast<int>(options_.stages.size());
  for (int stage = 0; stage < num_stages; ++stage) {
    const Schedule::Place place = options_.schedule.PlaceOf(stage);
    if (place.rank != rank()) continue;
    Activations out;
    if (stage > 0)
      out.hidden_BTC =
          Take(handed_over, options_.activations, stage - 1, stage, 0, base.tokens().sizes());
    for (int block = options_.stages[stage].first; block < options_.stages[stage].end; ++block) {
      if (IsHead(block)) return out;
      TraceSpan span(TraceKind::kOther, "forward", {.stage = stage});
      span.Label([&] { return model_.BlockName(block); });
      ForwardContext context = base;
      const bool is_last = block + 1 == options_.stages[stage].end;
      context.weights = parameters_.BeginForward(Local(place.chunk, block),
                                                 is_last ? -1 : Local(place.chunk, block + 1));
      out = model_.blocks[block]->Forward(context, out);
    }
    Give(handed_over, options_.activations, stage + 1, 0, out.hidden_BTC);
  }
  return {};
}

void BlockRunner::MoveRouterBiases(const RoutingTotals& routing, double rate) {
  shoal::MoveRouterBiases(routing, model_.config, rate, parameters_);
}

std::span<const Parameter> BlockRunner::HeadWeights() {
  const Schedule::Place place = options_.schedule.PlaceOf(options_.schedule.stages() - 1);
  return parameters_.BeginForward(Local(place.chunk, static_cast<int>(model_.blocks.size()) - 1));
}

double BlockRunner::Loss(const Batch& batch, double denominator, ObjectiveMetrics& metrics) {
  const TraceSpan span(TraceKind::kOther, "loss");
  const at::NoGradGuard no_grad;
  const DeviceBatch moved = Move(batch, Share(batch));
  ForwardContext context = Context(moved, denominator);
  const Activations in = RunStages(context);
  if (!in.hidden_BTC.defined()) return 0;
  context.weights = HeadWeights();
  return RunHead(context, in, metrics).loss.item<double>();
}

Activations BlockRunner::Head(const Batch& batch, const HeadOptions& options) {
  const TraceSpan span(TraceKind::kOther, "outputs");
  const at::NoGradGuard no_grad;
  const DeviceBatch moved =
      Move(batch, options.mode == HeadMode::kLogits ? std::nullopt : Share(batch));
  ForwardContext context = Context(moved, 1.0);
  context.head_mode = options.mode;
  context.temperature = options.temperature;
  context.adapters = options.adapters;
  const Activations in = RunStages(context);
  if (!in.hidden_BTC.defined()) return {};
  context.weights = HeadWeights();
  return model_.blocks.back()->Forward(context, in);
}

}  // namespace shoal
