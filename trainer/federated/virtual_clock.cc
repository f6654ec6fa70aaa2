#include <algorithm>
#include <cmath>
#include <numeric>
#include <queue>
#include <tuple>
#include <utility>

#include <ATen/ops/empty.h>

#include "core/random.h"
#include "trainer/federated/round_plan.h"

namespace shoal {
namespace {

// FedBuff (Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS
// 2022) as a simulation of events: what a client computes does not change when it reports, so the
// rounds are known before any is computed.
class VirtualClock final : public RoundPlanner {
 public:
  VirtualClock(const FederatedSection& federated, const Population& population)
      : federated_(federated), population_(population) {}

  RoundPlan Plan(int64_t round) override {
    RoundPlan plan{.round = round, .tasks = {}};
    if (round == 0) {
      waiting_ = federated_.asynchronous().concurrency();
      idle_.resize(population_.steps.size());
      std::iota(idle_.begin(), idle_.end(), 0);
    }
    while (static_cast<int64_t>(plan.tasks.size()) < federated_.asynchronous().buffer_size()) {
      if (running_.empty() || (waiting_ > 0 && std::get<0>(running_.top()) > now_)) Launch(round);
      const auto [time, launch, client, version] = running_.top();
      running_.pop();
      idle_.push_back(client);
      now_ = time;
      ++waiting_;
      const Philox coins(population_.seed, StreamId("federated.dropout"));
      if (coins.Uniform(static_cast<uint64_t>(launch)) < federated_.dropout()) continue;
      plan.tasks.push_back({.client = client,
                            .visit = launch,
                            .version = version,
                            .staleness_weight = StalenessWeight(round - version)});
    }
    version_after_ = round + 1;
    return plan;
  }

  int64_t OldestVersionNeeded() const override {
    int64_t oldest = version_after_;
    auto left = running_;
    for (; !left.empty(); left.pop()) oldest = std::min(oldest, std::get<3>(left.top()));
    return oldest;
  }

 private:
  // Report: its time, number of the launch, client, version that it started from.
  using Report = std::tuple<double, int64_t, int64_t, int64_t>;

  double StalenessWeight(int64_t staleness) const {
    return std::pow(1.0 + static_cast<double>(staleness),
                    -federated_.asynchronous().staleness_exponent());
  }

  double Duration(int64_t client) const {
    at::Tensor normal = at::empty({1}, at::kDouble);
    FillNormal(normal, Philox(population_.seed, StreamId("federated.latency")),
               static_cast<uint64_t>(client), 1.0);
    return static_cast<double>(population_.steps[client]) *
           std::exp(federated_.asynchronous().latency_sigma() * *normal.const_data_ptr<double>());
  }

  // Clients that idle, each as likely, in place of those that reported.
  void Launch(int64_t version) {
    const Philox draws(population_.seed, StreamId("federated.launches"));
    for (; waiting_ > 0; --waiting_, ++launches_) {
      SHOAL_CHECK(!idle_.empty()) << "more clients at work at a time than there are";
      std::swap(idle_[draws.Bits(static_cast<uint64_t>(launches_)) % idle_.size()], idle_.back());
      const int64_t client = idle_.back();
      idle_.pop_back();
      running_.emplace(now_ + Duration(client), launches_, client, version);
    }
  }

  const FederatedSection federated_;
  const Population population_;
  std::priority_queue<Report, std::vector<Report>, std::greater<>> running_;
  std::vector<int64_t> idle_;  // In any order
  double now_ = 0;
  int64_t waiting_ = 0;  // To be launched
  int64_t launches_ = 0;
  int64_t version_after_ = 0;
};

}  // namespace

std::unique_ptr<RoundPlanner> MakeVirtualClock(const FederatedSection& federated,
                                               const Population& population) {
  return std::make_unique<VirtualClock>(federated, population);
}

}  // namespace shoal
