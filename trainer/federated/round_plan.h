// Who takes part in a round, from which weights, and who trains whom: pure functions of the recipe,
// the seed and the round, so that every rank knows them without a word, a resumed run repeats them,
// and results do not depend on the number of ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "core/recipe.pb.h"
#include "core/status.h"

namespace shoal {

// One client's work in one round.
struct ClientTask {
  int64_t client = 0;
  int64_t visit = 0;  // Names the client's random choices: the round, or (asynchronous) the launch
  int64_t version = 0;          // Rounds that made the weights it starts from
  double staleness_weight = 1;  // Its update counts so much of its weight
  bool dropped = false;         // It was chosen and does not report
};

struct RoundPlan {
  int64_t round = 0;  // From 0
  std::vector<ClientTask> tasks;
};

class RoundPlanner {
 public:
  virtual ~RoundPlanner() = default;
  // Rounds 0, 1, 2, ... in turn, each once; a resumed run asks for those before it too.
  virtual RoundPlan Plan(int64_t round) = 0;
  // Of weights that rounds after the last planned one start from.
  virtual int64_t OldestVersionNeeded() const = 0;
};

struct Population {
  uint64_t seed = 0;
  std::vector<int64_t> steps;  // [client]: optimizer steps of a visit
};

// Rounds in step: all clients, so many of them, or each by its own coin; see FederatedSection.
std::unique_ptr<RoundPlanner> MakeSynchronousPlanner(const FederatedSection& federated,
                                                     const Population& population);
// FedBuff's rounds, on a virtual clock: see FederatedAsynchronous. A client that is launched at
// time t reports at t + steps * exp(latency_sigma * z_client), z_client ~ N(0, 1). Reports at the
// same time come in the order of their launches, all before any client is launched again.
std::unique_ptr<RoundPlanner> MakeVirtualClock(const FederatedSection& federated,
                                               const Population& population);

// Clients that train as one: equally many steps.
struct ClientStack {
  std::vector<int> tasks;  // Of the round's
  int64_t steps = 0;
};

// Stacks of at most `most` tasks of the round that are not dropped, most steps first; runs of
// equally long tasks are cut into stacks of nearly equal size.
std::vector<ClientStack> StackTasks(const RoundPlan& plan, const Population& population, int most);

// The group that trains each stack.
std::vector<int> AssignStacks(absl::Span<const ClientStack> stacks, int groups,
                              FederatedSection::Assignment assignment);

// Of one round, the largest sum of steps of a group over the mean of all: 1 is perfect balance.
double Imbalance(absl::Span<const ClientStack> stacks, absl::Span<const int> group_of, int groups);

}  // namespace shoal
