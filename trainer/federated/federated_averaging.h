// Federated averaging (McMahan et al., "Communication-Efficient Learning of Deep Networks from
// Decentralized Data", AISTATS 2017) and its relatives, round by round:
//
//   1  the round's clients, and who trains whom     round_plan.h, a function of seed and round
//   2  a client's local steps                       client_trainer.h, the trainer's own
//   3  start less end, clipped, weighted, added up  update_sum.h, int64: the same in any order
//   4  the server's step: the mean is a gradient    optim/sharded_optimizer.h, any update rule
//
// FedAvg, FedAvgM, FedAdam, FedYogi and FedAdagrad are rules of step 4; FedProx and SCAFFOLD
// corrections of gradients in step 2 (corrected_rule.h); FedBuff another plan in step 1; DiLoCo is
// local AdamW whose states are kept and a server with Nesterov momentum.
//
// The ranks are groups of equal size; a client trains on one group. Every group holds the server's
// weights and states, sharded within it by the ZeRO stage, and takes the same step 4.
//
// Where ranks compute on a device, steps 2 and 4 do. Step 3 is the host's: a client's update comes
// to host memory once, and the mean goes back once a round.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/log.h"
#include "optim/lr_schedule.h"
#include "trainer/federated/client_batches.h"
#include "trainer/federated/client_trainer.h"
#include "trainer/federated/partition.h"
#include "trainer/federated/privacy_accountant.h"
#include "trainer/federated/update_sum.h"

namespace shoal {

// What a round did. Equal on every rank, and on any number of ranks, but for `imbalance`.
struct RoundMetrics {
  int64_t round = 0;         // From 1
  double loss = 0;           // Mean of the clients' mean losses, by their weights
  double grad_norm = 0;      // Of the pseudo-gradient
  double client_norm = 0;    // Mean norm of an update, before clipping
  double learning_rate = 0;  // Of the clients
  int64_t tokens = 0;
  int64_t clients = 0;   // That reported
  int64_t dropped = 0;   // That did not; diverged ones too, but for robust rules
  double staleness = 0;  // Mean, in rounds
  double imbalance = 1;  // See Imbalance()
  std::optional<double> clip, clipped_share, epsilon;
};

class FederatedAveraging {
 public:
  struct Options {
    FederatedSection federated;
    uint64_t seed = 0;
    int64_t rounds = 0;        // Of the run
    LrSchedule learning_rate;  // Of the clients, over the rounds
    BatchPlan batch;           // Of a client
    bool shuffle = true;
    int stack_limit = 1;  // Clients that may train as one
  };
  // Borrowed; all outlive this. `trainer` gives the trainer for so many clients at once.
  struct Parts {
    DeviceMesh& mesh;     // Of this rank's group
    Communicator& outer;  // See update_sum.h
    const Model& model;
    ShardedParameters& parameters;  // The server's
    ShardedOptimizer& optimizer;
    std::function<absl::StatusOr<ClientTrainer*>(int copies)> trainer;
    const ExampleSet& examples;
    const Partition& clients;
    const Logger& log;
  };

  static absl::StatusOr<std::unique_ptr<FederatedAveraging>> Create(const Options& options,
                                                                    const Parts& parts);

  // The next round. Collective over all ranks, as is Create.
  absl::StatusOr<RoundMetrics> RunRound();

  int64_t round() const { return round_; }  // Done
  int64_t updates() const { return updates_; }
  int64_t tokens() const { return tokens_; }
  // Clients a round, (epsilon, delta) and the like, a line each.
  std::vector<std::string> Describe() const;
  // Of all `rounds`, under differential privacy with noise.
  std::optional<double> PlannedEpsilon() const;

  // Everything but the server's weights and optimizer states: control variates, clients' states,
  // weights that clients at work started from. `Progress` is text for a checkpoint; Restore, told
  // that text, gives the pieces to be filled, and is called once before the first round.
  std::vector<StatePiece> PiecesToSave() const;
  std::string Progress() const;
  absl::StatusOr<std::vector<StatePiece>> Restore(const std::string& progress);
  // What Progress must hold of every rank's clients. Collective.
  void AgreeOnClients();

 private:
  // Of a client between its visits, on the group that trains it.
  struct Memory {
    Tensor control;  // SCAFFOLD's c_i; undefined: zeros
    std::optional<KeptStates> states;
  };
  struct Report;  // A row a task, summed over groups
  // A task's client as one of `copies` that a trainer has trained together.
  struct Visit {
    int task;
    ClientTrainer& trainer;
    int copy;
    int copies;
    Tensor start;  // The weights that it began with, where the trainer's are
    const ClientTrainer::Outcome& outcome;
  };

  FederatedAveraging(const Options& options, const Parts& parts);
  absl::Status Prepare();

  bool scaffold() const { return options_.federated.algorithm() == FederatedSection::scaffold; }
  bool remembers() const { return scaffold() || options_.federated.keep_optimizer_state(); }
  bool is_private() const { return options_.federated.privacy().clip_norm() > 0; }
  int groups() const { return parts_.outer.size(); }
  std::vector<int> GroupsOf(const std::vector<ClientStack>& stacks, const RoundPlan& plan) const;
  double WeightOf(int64_t client) const;
  RoundUpdates::Round Terms(const RoundPlan& plan) const;
  double NormOf(const Tensor& vector) const;
  // That the recipe's cohorts can be masked and compared as it says.
  absl::Status CheckCohort() const;

  // See federated_privacy.cc.
  absl::Status PreparePrivacy();
  absl::Status SetNoise(double noise_multiplier);
  absl::Status ResumePrivacy(const std::vector<double>& planned_for, double noise_multiplier);
  std::vector<double> PrivacyPlan() const;
  double SamplingRate() const { return clients_a_round_ / parts_.clients.size(); }

  absl::Status TrainStack(const RoundPlan& plan, const ClientStack& stack, Tensor& report);
  absl::Status TakeUpdate(const RoundPlan& plan, const Visit& visit, Tensor& report);
  absl::Status ServerStep(const std::vector<bool>& survivors, RoundMetrics& metrics);
  RoundMetrics Summarise(const RoundPlan& plan, const Tensor& report,
                         const std::vector<bool>& survivors);
  std::vector<StatePiece> Pieces(bool saving) const;

  const Options options_;
  const Parts parts_;
  const std::vector<OptimizerSlice> slices_;  // The server's
  const WeightVector vector_;
  Population population_;
  double clients_a_round_ = 0;   // Expected
  double noise_multiplier_ = 0;  // z, as accounted, from now on
  double update_noise_multiplier_ =
      0;                          // What is left of z for the updates beside adaptive clipping
  PrivacyAccountant accountant_;  // Of the rounds done, before a resume too
  std::optional<AdaptiveClip> adaptive_clip_;
  std::unique_ptr<RoundPlanner> planner_;
  std::unique_ptr<RoundUpdates> updates_sum_, controls_sum_;

  RoundUpdates::Round terms_;  // Of the current round
  int64_t round_ = 0, updates_ = 0, tokens_ = 0;
  // Weights after so many rounds, those that are needed: the current round's where the clients
  // train, earlier ones in host memory.
  std::map<int64_t, Tensor> versions_;
  // In host memory.
  Tensor control_;                      // SCAFFOLD's c
  std::map<int64_t, Memory> memories_;  // By client, of this group
  std::vector<int64_t> remembered_;     // Of all groups, after AgreeOnClients
  Tensor delta_, mean_;
};

}  // namespace shoal
