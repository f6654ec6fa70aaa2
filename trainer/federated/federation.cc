#include "trainer/federated/federation.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "data/document_reader.h"
#include "kernels/threads.h"
#include "models/blocks/image_classifier.h"
#include "trainer/federated/server_rule.h"
#include "trainer/run_state.h"
#include "trainer/task_data.h"
#include "trainer/update_rules.h"

namespace shoal {
namespace {

std::unique_ptr<UpdateRule> ServerRuleOf(const FederatedServer& server) {
  if (server.name() == FederatedServer::sgd) {
    OptimizerSection sgd;
    sgd.set_name(OptimizerSection::sgd);
    sgd.set_momentum(server.momentum());
    sgd.set_nesterov(server.nesterov());
    return UpdateRuleOf(sgd);
  }
  using Kind = AdaptiveServerRule::Kind;
  return std::make_unique<AdaptiveServerRule>(AdaptiveServerRule::Options{
      .kind = server.name() == FederatedServer::yogi      ? Kind::kYogi
              : server.name() == FederatedServer::adagrad ? Kind::kAdagrad
                                                          : Kind::kAdam,
      .beta1 = server.beta1(),
      .beta2 = server.beta2(),
      .tau = server.tau(),
      .bias_correction = server.bias_correction()});
}

double MuOf(const FederatedSection& federated) {
  return federated.algorithm() == FederatedSection::fedprox ? federated.proximal_mu() : 0.0;
}

bool IsScaffold(const FederatedSection& federated) {
  return federated.algorithm() == FederatedSection::scaffold;
}

std::unique_ptr<UpdateRule> ClientRuleOf(const Recipe& recipe) {
  std::unique_ptr<UpdateRule> rule = UpdateRuleOf(recipe.optimizer());
  const double mu = MuOf(recipe.federated());
  const bool correction = IsScaffold(recipe.federated());
  if (mu == 0 && !correction) return rule;
  return std::make_unique<CorrectedRule>(
      std::move(rule), CorrectedRule::Options{.mu = mu, .correction = correction});
}

bool ReadsCsv(const DataSection& data) {
  return !data.train().empty() && data.train(0).format() == DataSource::csv;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Federation>> Federation::Build(const LoadedRecipe& recipe,
                                                              Communicator& world,
                                                              const TaskEnvironment& environment) {
  auto federation = std::unique_ptr<Federation>(new Federation(recipe, world, environment));
  SHOAL_RETURN_IF_ERROR(federation->Arrange());
  if (ReadsCsv(recipe.proto.data())) {
    SHOAL_ASSIGN_OR_RETURN(federation->examples_,
                           ReadCsvExamples(environment.files, recipe.proto.data(),
                                           recipe.proto.federated().client_column()));
  } else {
    SHOAL_RETURN_IF_ERROR(federation->ReadText());
  }
  SHOAL_RETURN_IF_ERROR(federation->FindClients());
  SHOAL_RETURN_IF_ERROR(federation->BuildServer());
  return federation;
}

absl::Status Federation::Arrange() {
  // A client's sums must not depend on how many threads its rank has.
  SetNumThreads(1);
  // Nor on what was measured: the host's products keep to their library.
  if (!world_.device().is_cpu()) ChooseProductLibrary(recipe_.proto, world_);
  SHOAL_ASSIGN_OR_RETURN(const MeshPlan plan, PlanMesh(recipe_, world_.size()));
  shape_ = ShapeOf(plan);
  const int size = shape_.num_ranks();
  group_ = world_.Split(world_.rank() / size, world_.rank());
  outer_ = world_.Split(world_.rank() % size, world_.rank());
  SHOAL_ASSIGN_OR_RETURN(batch_, PlanBatch(recipe_, plan.data_parallel_ranks));
  return absl::OkStatus();
}

absl::Status Federation::ReadText() {
  const Recipe& recipe = recipe_.proto;
  SHOAL_ASSIGN_OR_RETURN(const PreparedData data,
                         PrepareTaskData(recipe_, environment_, world_, /*shard_per_file=*/true));
  TextFiles text{.train = data.train, .eval = data.eval, .names = {}, .data = recipe.data()};
  for (const DataSource& source : recipe.data().train()) {
    SHOAL_ASSIGN_OR_RETURN(const std::vector<SourceFile> files, ListSourceFiles(source));
    for (const SourceFile& file : files) text.names.push_back(file.path);
  }
  SHOAL_CHECK(text.names.size() == text.train.size());
  SHOAL_ASSIGN_OR_RETURN(examples_, OpenTextExamples(text));
  vocab_size_ = data.vocab_size;
  return absl::OkStatus();
}

absl::Status Federation::FindClients() {
  const FederatedSection& federated = recipe_.proto.federated();
  const uint64_t seed = recipe_.proto.run().seed();
  const auto count = static_cast<int>(federated.num_clients());
  const int64_t examples = examples_.train->size();
  absl::StatusOr<Partition> found;
  switch (federated.partition()) {
    case FederatedSection::natural: {
      SHOAL_ASSIGN_OR_RETURN(const std::vector<std::string> owners, examples_.train->Owners());
      found = PartitionByKey(owners).clients;
      break;
    }
    case FederatedSection::iid:
      found = PartitionIid(examples, count, seed);
      break;
    case FederatedSection::dirichlet:
      found = PartitionDirichlet(
          examples_.train->Labels(), count, seed,
          {.alpha = federated.dirichlet_alpha(), .min_examples = federated.min_examples()});
      break;
    case FederatedSection::shards:
      found =
          PartitionShards(examples_.train->Labels(), count, federated.shards_per_client(), seed);
      break;
  }
  if (!found.ok()) return recipe_.ErrorAt("federated.partition", found.status().message());
  clients_ = *std::move(found);
  fingerprint_ =
      absl::StrFormat("%s, %d clients, seed %d", examples_.fingerprint, clients_.size(), seed);
  return absl::OkStatus();
}

absl::Status Federation::BuildServer() {
  SHOAL_ASSIGN_OR_RETURN(config_, ModelConfigOf(recipe_, environment_.files, vocab_size_));
  // The pseudo-gradient is as precise as the weights.
  if (recipe_.proto.model().dtype() == bfloat16)
    server_recipe_.proto.mutable_zero()->set_gradient_dtype(ZeroSection::gradient_float32);
  SHOAL_ASSIGN_OR_RETURN(DeviceMesh mesh, DeviceMesh::Create(*group_, shape_));
  SHOAL_ASSIGN_OR_RETURN(server_, Engine::Build(server_recipe_, std::move(mesh), batch_, config_,
                                                ServerRuleOf(recipe_.proto.federated().server())));
  return TrainerOf(1).status();
}

absl::StatusOr<ClientTrainer*> Federation::TrainerOf(int copies) {
  Workers& workers = workers_[copies];
  if (workers.trainer) return workers.trainer.get();
  ModelConfig config = config_;
  config.copies = copies;
  SHOAL_ASSIGN_OR_RETURN(DeviceMesh mesh, DeviceMesh::Create(*group_, shape_));
  SHOAL_ASSIGN_OR_RETURN(workers.engine, Engine::Build(recipe_, std::move(mesh), batch_, config,
                                                       ClientRuleOf(recipe_.proto)));
  Engine& engine = *workers.engine;
  const FederatedSection& federated = recipe_.proto.federated();
  workers.trainer = std::make_unique<ClientTrainer>(
      ClientTrainer::Options{.trainer = TrainerOptionsOf(recipe_.proto, num_rounds()),
                             .corrected = IsScaffold(federated),
                             .pulled_to_start = MuOf(federated) != 0},
      ClientTrainer::Parts{.mesh = engine.mesh(),
                           .model = engine.model(),
                           .runner_options = engine.runner_options(),
                           .parameters = engine.parameters(),
                           .optimizer = engine.optimizer(),
                           .copies = copies});
  return workers.trainer.get();
}

int Federation::StackLimit() const {
  const bool alone = group_->size() > 1 || batch_.accumulation > 1 ||
                     recipe_.proto.training().max_grad_norm() > 0 || !CanStackCopies(config_);
  return alone ? 1 : recipe_.proto.federated().stacked_clients();
}

absl::StatusOr<std::unique_ptr<FederatedAveraging>> Federation::MakeAveraging() {
  const Recipe& recipe = recipe_.proto;
  absl::StatusOr<std::unique_ptr<FederatedAveraging>> averaging =
      FederatedAveraging::Create({.federated = recipe.federated(),
                                  .seed = recipe.run().seed(),
                                  .rounds = num_rounds(),
                                  .learning_rate = LrScheduleOf(recipe, num_rounds()),
                                  .batch = batch_,
                                  .shuffle = recipe.data().shuffle(),
                                  .stack_limit = StackLimit()},
                                 {.mesh = server_->mesh(),
                                  .outer = *outer_,
                                  .model = server_->model(),
                                  .parameters = server_->parameters(),
                                  .optimizer = server_->optimizer(),
                                  .trainer = [this](int copies) { return TrainerOf(copies); },
                                  .examples = *examples_.train,
                                  .clients = clients_,
                                  .log = environment_.log});
  if (!averaging.ok() && absl::IsInvalidArgument(averaging.status()))
    return recipe_.ErrorAt("federated", averaging.status().message());
  return averaging;
}

}  // namespace shoal
