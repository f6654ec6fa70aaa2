// What a federated run is made of: groups of ranks, the clients' examples, the server's model and
// those that clients train, built from a recipe.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "trainer/engine.h"
#include "trainer/federated/client_trainer.h"
#include "trainer/federated/example_set.h"
#include "trainer/federated/federated_averaging.h"
#include "trainer/federated/partition.h"
#include "trainer/task.h"

namespace shoal {

class Federation {
 public:
  // All borrowed outlive the federation. Collective.
  static absl::StatusOr<std::unique_ptr<Federation>> Build(const LoadedRecipe& recipe,
                                                           Communicator& world,
                                                           const TaskEnvironment& environment);

  Communicator& world() { return world_; }
  Communicator& outer() { return *outer_; }  // Ranks of all groups in this rank's place
  Engine& server() { return *server_; }
  const ModelConfig& config() const { return config_; }
  const ExampleSets& examples() const { return examples_; }
  const Partition& clients() const { return clients_; }
  const std::string& fingerprint() const { return fingerprint_; }

  // Rounds of the run.
  int64_t num_rounds() const { return recipe_.proto.training().max_steps(); }
  absl::StatusOr<std::unique_ptr<FederatedAveraging>> MakeAveraging();

 private:
  // A model that so many clients train at once.
  struct Workers {
    std::unique_ptr<Engine> engine;
    std::unique_ptr<ClientTrainer> trainer;
  };

  Federation(const LoadedRecipe& recipe, Communicator& world, const TaskEnvironment& environment)
      : recipe_(recipe), server_recipe_(recipe), world_(world), environment_(environment) {}

  absl::Status Arrange();   // Groups of ranks
  absl::Status ReadText();  // Examples, by rank 0 where there is something to prepare
  absl::Status FindClients();
  absl::Status BuildServer();
  absl::StatusOr<ClientTrainer*> TrainerOf(int copies);
  int StackLimit() const;

  const LoadedRecipe& recipe_;
  LoadedRecipe server_recipe_;
  Communicator& world_;
  const TaskEnvironment& environment_;
  std::unique_ptr<Communicator> group_, outer_;
  MeshShape shape_;
  BatchPlan batch_;
  ModelConfig config_;
  ExampleSets examples_;
  int64_t vocab_size_ = 0;  // Of the tokenizer; 0: there is none
  Partition clients_;
  std::string fingerprint_;
  std::unique_ptr<Engine> server_;
  std::map<int, Workers> workers_;
};

}  // namespace shoal
