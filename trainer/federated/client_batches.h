// A client's batches of one visit, or those of several clients that train as one stack: the source
// that Trainer::TrainStep reads. Each epoch is a permutation of the client's examples, keyed by
// (seed, client, visit, epoch); a step takes the next `batch_size`, the last one of an epoch what
// is left.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "core/recipe_validation.h"
#include "trainer/batch_source.h"
#include "trainer/federated/example_set.h"
#include "trainer/federated/round_plan.h"

namespace shoal {

// Optimizer steps of a visit of a client with so many examples: federated.local_steps, or
// local_epochs times the batches of an epoch.
int64_t LocalSteps(const FederatedSection& federated, int64_t examples, int64_t batch_size);

class ClientBatches final : public BatchSource {
 public:
  struct Client {
    absl::Span<const int64_t> examples;
    uint64_t order_seed;
  };
  // How a step's examples are dealt out over the ranks of the group and their micro-batches.
  struct Deal {
    BatchPlan batch;
    int rank = 0;
    int ranks = 1;
    bool shuffle = true;
  };
  // `clients`: one, or several of a stack: then each step's rows are client 0's, client 1's, ...,
  // as many of each (rows without targets where one has less left).
  ClientBatches(const ExampleSet& examples, std::vector<Client> clients, const Deal& deal)
      : examples_(examples), clients_(std::move(clients)), deal_(deal) {}

  absl::StatusOr<std::vector<Batch>> MicroBatches(int64_t step) override;

  static uint64_t OrderSeed(uint64_t seed, const ClientTask& task);

 private:
  // Of this client's step, without padding.
  std::vector<int64_t> ExamplesOf(const Client& client, int64_t step) const;

  const ExampleSet& examples_;
  const std::vector<Client> clients_;
  const Deal deal_;
};

}  // namespace shoal
