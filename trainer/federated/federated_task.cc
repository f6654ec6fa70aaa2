#include "trainer/federated/federated_task.h"

#include <chrono>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "checkpoint/agreement.h"
#include "checkpoint/checkpoint.h"
#include "core/metrics.h"
#include "core/process_memory.h"
#include "core/trace.h"
#include "kernels/matmul.h"
#include "kernels/threads.h"
#include "models/blocks/image_classifier.h"
#include "trainer/federated/federated_eval.h"
#include "trainer/federated/federation.h"
#include "trainer/profile/profiler.h"
#include "trainer/run_folder.h"
#include "trainer/run_state.h"
#include "trainer/state_pieces.h"
#include "trainer/train_task.h"

namespace shoal {
namespace {

constexpr char kProgressKey[] = "federated";

class FederatedRun {
 public:
  FederatedRun(const LoadedRecipe& recipe, Communicator& world, const TaskEnvironment& environment)
      : recipe_(recipe),
        world_(world),
        environment_(environment),
        paths_(recipe.proto.run().output_dir()) {}

  absl::Status Run() {
    SHOAL_RETURN_IF_ERROR(WriteResolvedRecipe(recipe_, environment_, world_));
    SHOAL_ASSIGN_OR_RETURN(federation_, Federation::Build(recipe_, world_, environment_));
    SHOAL_ASSIGN_OR_RETURN(averaging_, federation_->MakeAveraging());
    for (const std::string& line : federation_->server().Describe()) environment_.log.Info(line);
    SHOAL_RETURN_IF_ERROR(FillWeights());
    for (const std::string& line : averaging_->Describe()) environment_.log.Info(line);
    if (averaging_->round() >= federation_->num_rounds()) {
      environment_.log.Info(
          absl::StrCat("complete  round ", averaging_->round(), " is trained and saved"));
      return absl::OkStatus();
    }
    SHOAL_ASSIGN_OR_RETURN(
        sinks_, OpenMetricsSinks(recipe_, environment_, world_,
                                 {.done = averaging_->round(), .all = federation_->num_rounds()}));
    SHOAL_RETURN_IF_ERROR(Rounds());
    for (auto& sink : sinks_) SHOAL_RETURN_IF_ERROR(sink->Close());
    return absl::OkStatus();
  }

 private:
  absl::Status FillWeights() {
    SHOAL_ASSIGN_OR_RETURN(const std::string checkpoint,
                           CheckpointToResume(recipe_, environment_, world_));
    if (!checkpoint.empty()) return Resume(checkpoint);
    return federation_->server().ReadStart(environment_.files);
  }

  absl::Status Resume(const std::string& checkpoint) {
    SHOAL_ASSIGN_OR_RETURN(const Manifest manifest, ReadManifest(environment_.files, checkpoint));
    const auto& extra = manifest.state().extra();
    const auto progress = extra.find(kProgressKey);
    if (progress == extra.end() ||
        manifest.state().data().fingerprint() != federation_->fingerprint()) {
      return recipe_.ErrorAt(
          "checkpoint.resume",
          absl::StrCat(checkpoint, " is not of this run (", manifest.state().data().fingerprint(),
                       "; the recipe's is ", federation_->fingerprint(),
                       "): choose another run.output_dir"));
    }
    absl::StatusOr<std::vector<StatePiece>> restored = averaging_->Restore(progress->second);
    if (absl::IsOutOfRange(restored.status()))
      return recipe_.ErrorAt("federated.privacy.target_epsilon", restored.status().message());
    SHOAL_ASSIGN_OR_RETURN(std::vector<StatePiece> pieces, std::move(restored));
    for (StatePiece& piece : ToStatePieces(federation_->server().optimizer().PiecesToLoad()))
      pieces.push_back(std::move(piece));
    SHOAL_ASSIGN_OR_RETURN(const TrainerState state,
                           LoadCheckpoint(environment_.files, world_, checkpoint, pieces));
    federation_->server().parameters().SyncFromMaster();
    trained_seconds_ = state.trained_seconds();
    if (state.has_eval_loss()) eval_loss_ = state.eval_loss();
    environment_.log.Info(
        absl::StrFormat("resumed   %s, written by %d ranks", checkpoint, state.layout().ranks()));
    return absl::OkStatus();
  }

  absl::Status Rounds() {
    const Recipe& recipe = recipe_.proto;
    const int64_t last = federation_->num_rounds();
    const auto due = [&](int64_t every) {
      return averaging_->round() == last || (every > 0 && averaging_->round() % every == 0);
    };
    Profiler profiler(ProfilerOptionsOf(recipe),
                      {.ranks = world_,
                       .files = environment_.files,
                       .log = environment_.log,
                       .matrix_peak =
                           [&] {
                             return world_.device().is_cpu()
                                        ? MeasureMatMulPeak(ComputeDtype(recipe), GetNumThreads())
                                        : 0.0;
                           },
                       .write_row = [this](const MetricsRow& row) { return Write(row); }});
    while (averaging_->round() < last) {
      const auto begin = std::chrono::steady_clock::now();
      const int64_t bytes_before = BytesSent();
      SHOAL_ASSIGN_OR_RETURN(const RoundMetrics metrics, RunRound());
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
      trained_seconds_ += seconds.count();
      since_row_.seconds += seconds.count();
      since_row_.tokens += metrics.tokens;
      ++since_row_.rounds;
      if (due(recipe.logging().steps()))
        SHOAL_RETURN_IF_ERROR(Log(metrics, BytesSent() - bytes_before));
      if (federation_->examples().eval && due(recipe.eval().steps()))
        SHOAL_RETURN_IF_ERROR(Evaluate());
      if (due(recipe.checkpoint().save_steps())) SHOAL_RETURN_IF_ERROR(Save());
      SHOAL_RETURN_IF_ERROR(profiler.AfterStep(averaging_->round()));
    }
    return profiler.AtEnd(averaging_->round());
  }

  absl::StatusOr<RoundMetrics> RunRound() {
    TraceSpan span(TraceKind::kOther, "round");
    span.Label([&] { return absl::StrCat(averaging_->round() + 1); });
    return averaging_->RunRound();
  }

  int64_t BytesSent() {
    return federation_->outer().counters().bytes_sent + federation_->server().mesh().bytes_sent();
  }

  absl::Status Write(const MetricsRow& row) {
    for (auto& sink : sinks_) SHOAL_RETURN_IF_ERROR(sink->Write(row));
    return absl::OkStatus();
  }

  absl::Status Log(const RoundMetrics& metrics, int64_t bytes_sent) {
    MetricsRow row{
        .step = metrics.round,
        .loss = metrics.loss,
        .grad_norm = metrics.grad_norm,
        .learning_rate = metrics.learning_rate,
        .tokens = averaging_->tokens(),
        .tokens_per_second = static_cast<double>(since_row_.tokens) / since_row_.seconds,
        .step_seconds = since_row_.seconds / static_cast<double>(since_row_.rounds),
        .peak_rss_bytes = MaxOverRanks(world_, PeakRssBytes()),
        .bytes_sent = bytes_sent,
        .eval_loss = {},
        .extra = {{"clients", static_cast<double>(metrics.clients)},
                  {"clients_dropped", static_cast<double>(metrics.dropped)},
                  {"rounds_lost", static_cast<double>(averaging_->round() - averaging_->updates())},
                  {"client_update_norm", metrics.client_norm},
                  {"imbalance", metrics.imbalance}}};
    if (recipe_.proto.federated().asynchronous().buffer_size() > 0)
      row.extra.emplace_back("staleness", metrics.staleness);
    if (metrics.clip) row.extra.emplace_back("clip_norm", *metrics.clip);
    if (metrics.clipped_share) row.extra.emplace_back("clipped_share", *metrics.clipped_share);
    if (metrics.epsilon) row.extra.emplace_back("epsilon", *metrics.epsilon);
    since_row_ = {};
    return Write(row);
  }

  absl::Status Evaluate() {
    const TraceSpan span(TraceKind::kOther, "evaluation");
    SHOAL_ASSIGN_OR_RETURN(
        const HeldOut held_out,
        EvaluateHeldOut(federation_->server(), *federation_->examples().eval, federation_->outer(),
                        {.rows = federation_->server().batch().per_device,
                         .max_batches = recipe_.proto.eval().max_batches(),
                         .accuracy = IsClassifier(federation_->config())}));
    MetricsRow row;
    row.step = averaging_->round();
    row.eval_loss = eval_loss_ = held_out.loss;
    if (held_out.accuracy) {
      row.extra.emplace_back("eval_accuracy", *held_out.accuracy);
      environment_.log.Info(absl::StrFormat("round %d: held-out accuracy %.2f %%",
                                            averaging_->round(), 100 * *held_out.accuracy));
    }
    return Write(row);
  }

  absl::Status Save() {
    const TraceSpan span(TraceKind::kOther, "checkpoint");
    averaging_->AgreeOnClients();
    TrainerState state = ConstantStateOf(recipe_, environment_, federation_->server(),
                                         federation_->fingerprint(), nullptr);
    state.set_step(averaging_->round());
    state.set_tokens(averaging_->tokens());
    state.set_skipped_steps(averaging_->round() - averaging_->updates());
    state.set_trained_seconds(trained_seconds_);
    state.set_wall_time(absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch()));
    if (eval_loss_) state.set_eval_loss(*eval_loss_);
    state.mutable_layout()->set_ranks(world_.size());
    state.mutable_layout()->set_replicate(federation_->outer().size() * state.layout().replicate());
    (*state.mutable_extra())[kProgressKey] = averaging_->Progress();
    std::vector<StatePiece> pieces =
        ToStatePieces(federation_->server().optimizer().PiecesToSave());
    for (StatePiece& piece : averaging_->PiecesToSave()) pieces.push_back(std::move(piece));
    return SaveCheckpoint(
        environment_.files, world_, paths_.checkpoints, state, pieces,
        {.save_total_limit = recipe_.proto.checkpoint().save_total_limit(),
         .warn = [this](const std::string& text) { environment_.log.Warning(text); }});
  }

  struct SinceRow {
    int64_t rounds = 0, tokens = 0;
    double seconds = 0;
  };

  const LoadedRecipe& recipe_;
  Communicator& world_;
  const TaskEnvironment& environment_;
  const RunPaths paths_;
  std::unique_ptr<Federation> federation_;
  std::unique_ptr<FederatedAveraging> averaging_;
  std::vector<std::unique_ptr<MetricsSink>> sinks_;
  SinceRow since_row_;
  double trained_seconds_ = 0;
  std::optional<double> eval_loss_;
};

}  // namespace

absl::Status RunFederated(const LoadedRecipe& recipe, Communicator& world,
                          const TaskEnvironment& environment) {
  SHOAL_RETURN_IF_ERROR(FederatedRun(recipe, world, environment).Run());
  return FinishRun(recipe, world, environment);
}

}  // namespace shoal
