#include "tests/trainer/federated/federated_job.h"

#include <cmath>
#include <map>
#include <mutex>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "core/random.h"
#include "parallel/comm/local_communicator.h"
#include "tests/trainer/training_job.h"
#include "trainer/state_pieces.h"

namespace shoal {
namespace {

// Each class has its own bright corner, under noise.
std::string DigitsCsv() {
  std::string text = "p0,p1,p2,p3,p4,p5,p6,p7,p8,p9,p10,p11,p12,p13,p14,p15,class\n";
  const Philox noise(5);
  for (int row = 0; row < 96; ++row) {
    const int label = static_cast<int>(noise.Bits(row * 32 + 31) % 3);
    for (int p = 0; p < 16; ++p) {
      const int bright = p / 5 == label ? 8 : 0;
      absl::StrAppend(&text, bright + noise.Bits(row * 32 + p) % 9, ",");
    }
    absl::StrAppend(&text, label, "\n");
  }
  return text;
}

std::string RecipeText(const std::string& csv) {
  return absl::StrCat(R"(
task: federated
run: {name: job, seed: 11}
model:
  dtype: float64
  config: {model_type: image_classifier, num_labels: 3, num_hidden_layers: 0, hidden_size: 8,
           image_size: 4, max_pixel: 16}
data: {train: [{path: )",
                      csv, R"(, format: csv}], holdout: 0}
training: {max_steps: 3, per_device_train_batch_size: 4, gradient_accumulation_steps: 1,
           max_grad_norm: 0}
optimizer: {name: sgd, learning_rate: 0.5}
scheduler: {type: constant}
federated: {num_clients: 12, partition: dirichlet, stacked_clients: 1}
)");
}

using SavedPieces = std::map<std::string, at::Tensor>;  // Whole tensors, by name

void Collect(const std::vector<StatePiece>& pieces, SavedPieces& saved) {
  for (const StatePiece& piece : pieces) {
    int64_t numel = 1;
    for (int64_t size : piece.shape) numel *= size;
    at::Tensor& whole = saved[piece.name];
    if (!whole.defined()) whole = at::zeros({numel}, piece.data.scalar_type());
    whole.narrow(0, piece.begin, piece.data.numel()).copy_(piece.data);
  }
}

std::vector<double> AsDoubles(const at::Tensor& tensor) {
  const at::Tensor values = tensor.to(at::kDouble).contiguous();
  return {values.const_data_ptr<double>(), values.const_data_ptr<double>() + values.numel()};
}

struct Saved {
  std::mutex mutex;
  SavedPieces pieces;
  std::string progress;
};

absl::Status RunPart(const FederatedJob& job, const LoadedRecipe& recipe, Communicator& world,
                     bool resumed, int until, Saved& saved, FederatedResult& result) {
  PosixFileSystem files;
  const Logger log(world.rank(), world.size());
  const TaskEnvironment environment{.files = files, .log = log, .version = "test"};
  SHOAL_ASSIGN_OR_RETURN(const auto federation, Federation::Build(recipe, world, environment));
  SHOAL_ASSIGN_OR_RETURN(const auto averaging, federation->MakeAveraging());
  Engine& server = federation->server();
  if (resumed) {
    SHOAL_ASSIGN_OR_RETURN(std::vector<StatePiece> pieces, averaging->Restore(saved.progress));
    for (StatePiece& piece : ToStatePieces(server.optimizer().PiecesToLoad()))
      pieces.push_back(std::move(piece));
    for (StatePiece& piece : pieces) {
      const auto found = saved.pieces.find(piece.name);
      if (found == saved.pieces.end())
        return absl::NotFoundError(absl::StrCat(piece.name, " was not saved"));
      piece.data.copy_(found->second.narrow(0, piece.begin, piece.data.numel()));
    }
    server.parameters().SyncFromMaster();
  } else {
    server.InitializeRandom(recipe.proto.run().seed());
  }
  std::vector<RoundMetrics> rounds;
  while (averaging->round() < until) {
    SHOAL_ASSIGN_OR_RETURN(RoundMetrics metrics, averaging->RunRound());
    rounds.push_back(std::move(metrics));
  }
  averaging->AgreeOnClients();
  const std::lock_guard lock(saved.mutex);
  if (world.rank() == 0) {
    result.rounds.insert(result.rounds.end(), rounds.begin(), rounds.end());
    saved.progress = averaging->Progress();
  }
  Collect(ToStatePieces(server.optimizer().PiecesToSave()), saved.pieces);
  Collect(averaging->PiecesToSave(), saved.pieces);
  return absl::OkStatus();
}

}  // namespace

FederatedResult RunFederatedJob(const FederatedJob& job) {
  const std::string csv = testing::TempDir() + "/federated_job.csv";
  PosixFileSystem files;
  EXPECT_TRUE(WriteFileAtomically(files, csv, job.csv.empty() ? DigitsCsv() : job.csv).ok());
  std::vector<std::string> overrides = job.overrides;
  overrides.push_back(absl::StrCat("training.max_steps=", job.rounds));
  FederatedResult result;
  auto saved = std::make_unique<Saved>();
  const auto run = [&](int ranks, bool resumed, int until, c10::DeviceType device) {
    const absl::StatusOr<LoadedRecipe> recipe = ParseRecipe(RecipeText(csv), "job.yaml", overrides);
    EXPECT_TRUE(recipe.ok()) << recipe.status();
    if (!recipe.ok()) return;
    auto fresh = std::make_unique<Saved>();
    if (resumed) {
      fresh->progress = saved->progress;
      fresh->pieces = saved->pieces;
    }
    const absl::Status status = RunRanks(ranks, [&](Communicator& host) {
      return OnDevice(device, host, [&](Communicator& world) {
        return RunPart(job, *recipe, world, resumed, until, *fresh, result);
      });
    });
    EXPECT_TRUE(status.ok() || job.may_fail) << status;
    if (!status.ok()) result.error = std::string(status.message());
    saved = std::move(fresh);
  };
  if (job.restart_after > 0) {
    const size_t given = overrides.size();
    overrides.insert(overrides.end(), job.before_restart.begin(), job.before_restart.end());
    run(job.ranks, false, job.restart_after, job.device);
    overrides.resize(given);
    run(job.restart_ranks > 0 ? job.restart_ranks : job.ranks, true, job.rounds,
        job.restart_device);
  } else {
    run(job.ranks, false, job.rounds, job.device);
  }
  for (const auto& [name, whole] : saved->pieces) {
    std::vector<double>& into = name.rfind("weights/", 0) == 0 ? result.weights : result.states;
    for (double value : AsDoubles(whole)) into.push_back(value);
  }
  return result;
}

std::vector<std::vector<std::string>> FederatedVariants() {
  return {
      {},
      {"federated.algorithm=fedprox", "federated.proximal_mu=0.1"},
      {"federated.algorithm=scaffold", "federated.clients_per_round=5"},
      {"federated.server.name=adam", "federated.server.learning_rate=0.1"},
      {"federated.server.name=yogi", "federated.clients_per_round=7", "federated.dropout=0.3"},
      {"federated.server.momentum=0.9", "federated.server.nesterov=true",
       "federated.keep_optimizer_state=true", "optimizer.name=adamw",
       "optimizer.learning_rate=0.01", "federated.local_steps=3"},
      {"federated.sampling=poisson", "federated.clients_per_round=6", "federated.weighting=equal",
       "federated.privacy.clip_norm=0.2", "federated.privacy.noise_multiplier=0.5",
       "federated.privacy.adaptive_clip=true"},
      {"federated.secure_aggregation.enabled=true", "federated.secure_aggregation.threshold=7",
       "federated.dropout=0.2"},
      {"federated.aggregation=median"},
      {"federated.aggregation=trimmed_mean", "federated.trim=0.2"},
      {"federated.aggregation=krum", "federated.num_byzantine=2", "federated.krum_selected=3"},
      {"federated.asynchronous.buffer_size=4", "federated.asynchronous.concurrency=9"},
      {"federated.stacked_clients=4"},
  };
}

double LargestDifference(const std::vector<double>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

void ExpectSameBits(const FederatedResult& got, const FederatedResult& want,
                    const std::string& what) {
  ASSERT_FALSE(want.weights.empty()) << what;
  EXPECT_EQ(got.weights, want.weights) << what;
  EXPECT_EQ(got.states, want.states) << what;
  ASSERT_EQ(got.rounds.size(), want.rounds.size()) << what;
  for (size_t i = 0; i < want.rounds.size(); ++i) {
    EXPECT_EQ(got.rounds[i].loss, want.rounds[i].loss) << what << ", round " << i + 1;
    EXPECT_EQ(got.rounds[i].grad_norm, want.rounds[i].grad_norm) << what << ", round " << i + 1;
    EXPECT_EQ(got.rounds[i].clients, want.rounds[i].clients) << what << ", round " << i + 1;
    EXPECT_EQ(got.rounds[i].epsilon, want.rounds[i].epsilon) << what << ", round " << i + 1;
  }
}

}  // namespace shoal
