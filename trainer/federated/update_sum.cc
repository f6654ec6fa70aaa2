#include "trainer/federated/update_sum.h"

#include <cmath>
#include <numeric>

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include "core/random.h"
#include "parallel/device_mesh.h"
#include "trainer/federated/robust_aggregation.h"

namespace shoal {
namespace {

absl::Span<int64_t> Values(Tensor& tensor) {
  return {tensor.mutable_data_ptr<int64_t>(), static_cast<size_t>(tensor.numel())};
}

}  // namespace

RoundUpdates::RoundUpdates(Options options, Communicator& outer)
    : options_(std::move(options)), outer_(outer) {
  if (robust()) return;
  sums_ = at::zeros({options_.size + 1}, at::kLong);
  if (options_.federated.secure_aggregation().enabled())
    masked_ = at::zeros({options_.size + 1}, at::kLong);
}

absl::Status RoundUpdates::Begin(const Round& round) {
  round_ = round;
  kept_.clear();
  masks_.reset();
  masked_status_ = absl::OkStatus();
  if (robust()) return absl::OkStatus();
  sums_.zero_();
  // Of the updates and of the divisors: whichever is larger must fit.
  const double weights = std::accumulate(round.weights.begin(), round.weights.end(), 0.0),
               divisors = std::accumulate(round.divisors.begin(), round.divisors.end(), 0.0);
  SHOAL_ASSIGN_OR_RETURN(format_, PlanFixedPoint(std::max(1.0, options_.federated.update_range()),
                                                 std::max({weights, divisors, 1.0})));
  const FederatedSecureAggregation& secure = options_.federated.secure_aggregation();
  if (!secure.enabled() || round.weights.empty()) return absl::OkStatus();
  absl::StatusOr<SecureAggregationRound> masks = SecureAggregationRound::Start(
      {.num_clients = static_cast<int>(round.weights.size()),
       .threshold = secure.threshold(),
       .neighbours = secure.neighbours(),
       .round_seed = Philox(options_.seed, StreamId("federated.masks"))
                         .Bits(static_cast<uint64_t>(round.round))},
      SimulationSecret(options_.seed, static_cast<uint64_t>(round.round)));
  masked_status_ = masks.status();
  if (absl::IsFailedPrecondition(masked_status_)) return absl::OkStatus();  // Finish says so
  SHOAL_RETURN_IF_ERROR(masked_status_);
  masks_ = *std::move(masks);
  return absl::OkStatus();
}

absl::StatusOr<bool> RoundUpdates::Add(int task, const Tensor& delta, double norm) {
  if (robust()) {
    kept_.emplace_back(task, delta.clone());
    return true;
  }
  if (!std::isfinite(norm) || !open()) return false;
  double weight = round_.weights[task];
  FixedPoint format = format_;
  if (round_.clip > 0) {
    SHOAL_ASSIGN_OR_RETURN(const double factor, ClipFactor(norm, round_.clip));
    weight *= factor;
    format.range /= factor;  // What is clipped must fit, not what it was
  }
  Tensor& into = masks_ ? masked_ : sums_;
  if (masks_) into.zero_();
  Tensor updates = into.narrow(0, 0, options_.size), divisor = into.narrow(0, options_.size, 1);
  const absl::Status added = AddFixedPoint(delta, weight, format, updates);
  if (absl::IsOutOfRange(added)) return false;
  SHOAL_RETURN_IF_ERROR(added);
  SHOAL_RETURN_IF_ERROR(
      AddFixedPoint(at::full({1}, 1.0, at::kDouble), round_.divisors[task], format_, divisor));
  if (masks_) {
    masks_->AddMask(task, options_.group_rank * (options_.size + 1), Values(masked_));
    sums_.add_(masked_);
  }
  return true;
}

void RoundUpdates::AddNoise(Tensor& sum) const {
  const Philox noise(
      Philox(options_.seed, StreamId("federated.noise")).Bits(static_cast<uint64_t>(round_.round)));
  for (const WeightVector::Coordinates& run : options_.coordinates) {
    Tensor part = sum.narrow(0, run.offset, run.count);
    AddGaussianNoise(part, noise, static_cast<uint64_t>(run.first), round_.noise_stddev);
  }
}

absl::Status RoundUpdates::FinishMean(const std::vector<bool>& survivors, Tensor& mean) {
  SHOAL_RETURN_IF_ERROR(masked_status_);
  if (outer_.size() > 1) outer_.AllReduce(sums_);
  if (masks_) {
    SHOAL_ASSIGN_OR_RETURN(const MaskRemoval removal, masks_->Finish(survivors));
    removal.RemoveFrom(options_.group_rank * (options_.size + 1), Values(sums_));
  }
  Tensor divisor = at::empty({1}, at::kDouble);
  DecodeFixedPoint(sums_.narrow(0, options_.size, 1), format_, 1.0, divisor);
  const double by =
      round_.fixed_divisor > 0 ? round_.fixed_divisor : *divisor.const_data_ptr<double>();
  const Tensor updates = sums_.narrow(0, 0, options_.size);
  if (round_.noise_stddev > 0) {
    DecodeFixedPoint(updates, format_, 1.0, mean);
    AddNoise(mean);
    mean.div_(by);
  } else if (by > 0) {
    DecodeFixedPoint(updates, format_, by, mean);
  } else {
    mean.zero_();
  }
  return absl::OkStatus();
}

absl::Status RoundUpdates::FinishRobust(const std::vector<bool>& survivors, Tensor& mean) {
  std::vector<Tensor> updates;
  // Every group's, in the order of tasks: as many rows of each, those it lacks empty.
  const int64_t most = MaxOverRanks(outer_, static_cast<int64_t>(kept_.size()));
  if (most == 0) {
    mean.zero_();
    return absl::OkStatus();
  }
  Tensor mine = at::zeros({most, options_.size}, options_.dtype),
         names = at::full({most}, -1, at::kLong);
  for (size_t i = 0; i < kept_.size(); ++i) {
    mine[static_cast<int64_t>(i)].copy_(kept_[i].second);
    names[static_cast<int64_t>(i)].fill_(kept_[i].first);
  }
  Tensor all = at::empty({outer_.size() * most * options_.size}, options_.dtype),
         all_names = at::empty({outer_.size() * most}, at::kLong);
  outer_.AllGather(all, mine.flatten());
  outer_.AllGather(all_names, names);
  std::vector<int64_t> row_of(survivors.size(), -1);
  for (int64_t row = 0; row < all_names.numel(); ++row) {
    const int64_t task = all_names.const_data_ptr<int64_t>()[row];
    if (task >= 0) row_of[task] = row;
  }
  for (size_t task = 0; task < survivors.size(); ++task) {
    if (survivors[task])
      updates.push_back(all.narrow(0, row_of[task] * options_.size, options_.size));
  }
  const FederatedSection& federated = options_.federated;
  switch (federated.aggregation()) {
    case FederatedSection::median:
      return CoordinateMedian(updates, mean);
    case FederatedSection::trimmed_mean:
      return TrimmedMean(updates, federated.trim(), mean);
    default:
      break;
  }
  const auto count = static_cast<int64_t>(updates.size());
  Tensor distances = at::zeros({count, count}, at::kDouble);
  SHOAL_RETURN_IF_ERROR(AddSquaredDistances(updates, distances));
  SHOAL_ASSIGN_OR_RETURN(
      const std::vector<int> selected,
      SelectKrum(distances, federated.num_byzantine(), federated.krum_selected()));
  mean.zero_();
  for (int i : selected) mean.add_(updates[i], 1.0 / static_cast<double>(selected.size()));
  return absl::OkStatus();
}

absl::Status RoundUpdates::Finish(const std::vector<bool>& survivors, Tensor& mean) {
  return robust() ? FinishRobust(survivors, mean) : FinishMean(survivors, mean);
}

}  // namespace shoal
