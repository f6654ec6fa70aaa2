// The clients' updates of one round, on their way to one: clipped, weighted, masked, added up in
// fixed point and averaged; or compared with one another by a robust rule.
//
//   RoundUpdates updates(options, shape, outer);
//   updates.Begin(round, weights)                   // what each task's update will weigh
//   updates.Add(task, delta, norm)                  // this group's, in any order
//   updates.Finish(survivors, mean)                 // collective
//
// What comes out has the same bits on any number of groups and in any assignment of tasks to them.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "core/recipe.pb.h"
#include "core/status.h"
#include "parallel/comm/communicator.h"
#include "trainer/federated/clipping.h"
#include "trainer/federated/fixed_point.h"
#include "trainer/federated/secure_aggregation.h"
#include "trainer/federated/weight_vector.h"

namespace shoal {

class RoundUpdates {
 public:
  struct Options {
    FederatedSection federated;
    uint64_t seed = 0;
    int64_t size = 0;  // Of an update on this rank
    at::ScalarType dtype = at::kFloat;
    int group_rank = 0;
    std::vector<WeightVector::Coordinates> coordinates;  // For the noise
  };
  // outer: the ranks of all groups that hold the same part of the model; it outlives this.
  RoundUpdates(Options options, Communicator& outer);

  struct Round {
    int64_t round = 0;
    std::vector<double> weights;   // [task] in the sum; dropped ones too
    std::vector<double> divisors;  // [task] what each adds to what the sum is divided by
    double clip = 0;               // 0: no clipping
    double noise_stddev = 0;       // On the sum
    double fixed_divisor = 0;      // Instead of the sum of divisors, under differential privacy
  };
  absl::Status Begin(const Round& round);
  // False: the cohort is too small for its masks, and Finish will say so.
  bool open() const { return masked_status_.ok(); }

  // delta: (size) start less end. norm: over the whole model. False: the update is not finite, or
  // moved further than update_range after clipping, and counts as dropped. A robust rule takes it
  // whatever it is: it is told how many such senders to bear.
  absl::StatusOr<bool> Add(int task, const Tensor& delta, double norm);

  // survivors: [task] whether Add returned true, on whichever group. mean: (size), zeros if nobody
  // reported and there is no noise. FailedPrecondition: too few survived for the masks, or for the
  // robust rule, and the round is lost. Collective over outer.
  absl::Status Finish(const std::vector<bool>& survivors, Tensor& mean);

 private:
  bool robust() const { return options_.federated.aggregation() != FederatedSection::mean; }
  absl::Status FinishMean(const std::vector<bool>& survivors, Tensor& mean);
  absl::Status FinishRobust(const std::vector<bool>& survivors, Tensor& mean);
  void AddNoise(Tensor& sum) const;

  const Options options_;
  Communicator& outer_;
  Round round_;
  FixedPoint format_;
  Tensor sums_;    // (size + 1) int64: of the updates, and of the divisors
  Tensor masked_;  // (size + 1) int64: one client's, under secure aggregation
  std::optional<SecureAggregationRound> masks_;
  absl::Status masked_status_;                // Not OK: the cohort is too small to hide anyone in
  std::vector<std::pair<int, Tensor>> kept_;  // Of a robust rule: this group's updates
};

}  // namespace shoal
