// A small federated job on rank threads: from a recipe's text, over a table of made-up digits.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <c10/core/DeviceType.h>

#include "core/metrics.h"
#include "trainer/federated/federation.h"

namespace shoal {

struct FederatedJob {
  int ranks = 1;
  int rounds = 3;
  std::vector<std::string> overrides = {};  // "federated.algorithm=scaffold"
  int restart_after =
      0;  // Rounds after which everything is built anew from what was saved; 0: never
  int restart_ranks = 0;                         // On so many ranks; 0: as many
  std::vector<std::string> before_restart = {};  // Overrides of the first part alone
  std::string csv = {};                          // Other data
  bool may_fail = false;                         // Then FederatedResult::error says why
  c10::DeviceType device = c10::kCPU;            // Each rank has one of this type
  c10::DeviceType restart_device = c10::kCPU;    // After restart_after
};

struct FederatedResult {
  std::vector<RoundMetrics> rounds;
  std::vector<double> weights;  // The server's, end to end
  std::vector<double> states;   // Its optimizer's
  std::string error;
};

// The recipe: 12 clients (Dirichlet 0.5) of 96 images of 4 x 4 pixels in 3 classes, a perceptron in
// float64, batches of 4, one epoch a round, SGD 0.5; `overrides` come last.
FederatedResult RunFederatedJob(const FederatedJob& job);

// Overrides for every way of averaging that there is.
std::vector<std::vector<std::string>> FederatedVariants();

// To the last bit.
void ExpectSameBits(const FederatedResult& got, const FederatedResult& want,
                    const std::string& what);
double LargestDifference(const std::vector<double>& a, const std::vector<double>& b);

}  // namespace shoal
