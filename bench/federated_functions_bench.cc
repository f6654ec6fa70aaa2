// Speed of the functions under federated averaging: `federated_functions_bench [coordinates]`, one
// thread unless OMP_NUM_THREADS says more. Rates are coordinates of one client's update a second.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include <ATen/ATen.h>

#include "core/random.h"
#include "trainer/federated/clipping.h"
#include "trainer/federated/fixed_point.h"
#include "trainer/federated/partition.h"
#include "trainer/federated/privacy_accountant.h"
#include "trainer/federated/robust_aggregation.h"
#include "trainer/federated/secure_aggregation.h"

namespace shoal {
namespace {

double Seconds(const std::function<void()>& work) {
  using Clock = std::chrono::steady_clock;
  double best = 1e30, spent = 0;
  for (int run = 0; run < 3 || (spent < 0.3 && run < 1000); ++run) {
    const auto start = Clock::now();
    work();
    const double took = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::min(best, took);
    spent += took;
  }
  return best;
}

void Report(const std::string& what, double coordinates, const std::function<void()>& work) {
  const double seconds = Seconds(work);
  std::printf("%-44s %10.3f ms", what.c_str(), seconds * 1e3);
  if (coordinates > 0) std::printf(" %10.1f M/s", coordinates / seconds * 1e-6);
  std::printf("\n");
}

void Must(const absl::Status& status) { SHOAL_CHECK(status.ok()) << status.message(); }

std::vector<Tensor> Updates(int clients, int64_t size) {
  std::vector<Tensor> updates;
  for (int client = 0; client < clients; ++client) {
    Tensor update = at::empty({size}, at::kFloat);
    FillNormal(update, Philox(1, client), 0, 0.01);
    updates.push_back(update);
  }
  return updates;
}

void FixedPointAndNoise(int64_t size) {
  const Tensor update = Updates(1, size)[0];
  const FixedPoint format = *PlanFixedPoint(64, 1000);
  Tensor sums = at::zeros({size}, at::kLong), mean = at::empty({size});
  const double count = static_cast<double>(size);
  Report("float32 axpy (ATen), for comparison", count, [&] { mean.add_(update, 0.5); });
  Report("AddFixedPoint", count, [&] { Must(AddFixedPoint(update, 0.5, format, sums)); });
  Report("DecodeFixedPoint", count, [&] { DecodeFixedPoint(sums, format, 3, mean); });
  Report("GlobalNorm", count, [&] { GlobalNorm({update}); });
  Report("AddGaussianNoise", count, [&] { AddGaussianNoise(mean, Philox(1), 0, 1); });
  std::vector<int64_t> values(static_cast<size_t>(size), 1);
  Report("ApplyMask", count,
         [&] { ApplyMask(MaskSeed{}, MaskSign::kAdd, 0, absl::MakeSpan(values)); });
}

void RobustRules(int64_t size) {
  for (int clients : {10, 30, 100}) {
    const auto updates = Updates(clients, size);
    const double count = static_cast<double>(size) * clients;
    Tensor out = at::empty({size});
    Tensor distances = at::zeros({clients, clients}, at::kDouble);
    const std::string of = absl::StrCat(" of ", clients, " clients");
    Report("CoordinateMedian" + of, count, [&] { Must(CoordinateMedian(updates, out)); });
    Report("  ATen: stack, median", count, [&] { at::stack(updates).median(0); });
    Report("TrimmedMean(0.1)" + of, count, [&] { Must(TrimmedMean(updates, 0.1, out)); });
    Report("AddSquaredDistances" + of, count,
           [&] { Must(AddSquaredDistances(updates, distances)); });
  }
}

void Rounds() {
  for (const auto& [clients, neighbours] :
       std::vector<std::pair<int, int>>{{10, 0}, {100, 0}, {100, 30}, {1000, 34}}) {
    const SecureAggregationOptions options{.num_clients = clients, .neighbours = neighbours};
    const std::string of = absl::StrCat(" of ", clients, ", neighbours ", neighbours);
    const auto start = [&] { return *SecureAggregationRound::Start(options, MaskSeed{}); };
    Report("SecureAggregationRound::Start" + of, 0, [&] { start(); });
    SecureAggregationRound round = start();
    std::vector<bool> survived(clients, true);
    for (int client = 0; client < clients; client += 10) survived[client] = false;
    Must(round.Finish(survived).status());
    const int64_t bytes = round.protocol_bytes() / clients;
    Report("  Finish, a tenth dropped out", 0, [&] { Must(round.Finish(survived).status()); });
    std::printf("  %lld bytes a client beside its update\n", static_cast<long long>(bytes));
  }
  Report("PrivacyAccountant: one event, epsilon", 0, [&] {
    PrivacyAccountant accountant;
    Must(accountant.Compose({0.01, 1.1, 1000}));
    accountant.Spent(1e-6);
  });
  Report("CalibrateNoiseMultiplier", 0,
         [&] { Must(CalibrateNoiseMultiplier(2, 1e-6, 0.01, 1000).status()); });
  std::vector<int64_t> labels;
  for (int64_t k = 0; k < 1'000'000; ++k) labels.push_back(k % 10);
  Report("PartitionIid, a million examples, 1000", 1e6,
         [&] { Must(PartitionIid(1'000'000, 1000, 1).status()); });
  Report("PartitionDirichlet(0.1), a million, 1000", 1e6, [&] {
    Must(PartitionDirichlet(labels, 1000, 1, {.alpha = 0.1, .min_examples = 0}).status());
  });
}

}  // namespace
}  // namespace shoal

int main(int argc, char** argv) {
  const int64_t size = argc > 1 ? std::atoll(argv[1]) : 1'000'000;
  std::printf("%lld coordinates, float32\n", static_cast<long long>(size));
  shoal::FixedPointAndNoise(size);
  shoal::RobustRules(size);
  shoal::Rounds();
}
