#include "trainer/federated/privacy_accountant.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <utility>

namespace shoal {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// log(erfc(x)). Above 10, where erfc runs out of exponent, by its asymptotic series, whose terms
// fall below 1e-17 before they grow.
double LogErfc(double x) {
  if (x < 10) return std::log(std::erfc(x));
  double series = 1, term = 1;
  for (int k = 1; k <= 12; ++k) {
    term *= -(2 * k - 1) / (2 * x * x);
    series += term;
  }
  return -x * x - std::log(x * std::sqrt(std::numbers::pi)) + std::log(series);
}

// Signed terms given by their logarithms; Log() of their sum.
class LogSum {
 public:
  void Add(double log_term, double sign) { terms_.emplace_back(log_term, sign); }
  double Log() const {
    double largest = -kInfinity;
    for (const auto& [log_term, sign] : terms_) largest = std::max(largest, log_term);
    if (largest == -kInfinity) return -kInfinity;
    double sum = 0;
    for (const auto& [log_term, sign] : terms_) sum += sign * std::exp(log_term - largest);
    return largest + std::log(sum);
  }

 private:
  std::vector<std::pair<double, double>> terms_;
};

// log A of a whole order: Mironov et al. 2019, equation 4.
double LogMomentWhole(int64_t order, double q, double z) {
  LogSum sum;
  for (int64_t i = 0; i <= order; ++i) {
    const double k = static_cast<double>(i), n = static_cast<double>(order);
    const double log_binomial = std::lgamma(n + 1) - std::lgamma(k + 1) - std::lgamma(n - k + 1);
    sum.Add(log_binomial + k * std::log(q) + (n - k) * std::log1p(-q) + (k * k - k) / (2 * z * z),
            1);
  }
  return sum.Log();
}

// log A of any order: section 3.3, two series whose terms alternate in sign beyond the order.
double LogMomentFractional(double order, double q, double z) {
  const double z0 = z * z * std::log(1 / q - 1) + 0.5;
  const double width = std::numbers::sqrt2 * z;
  const double log_q = std::log(q), log_rest = std::log1p(-q);
  LogSum sum;
  double log_binomial = 0, sign = 1;  // Of order over i
  for (int i = 0; i < 1'000'000; ++i) {
    const double j = order - i;
    const double s0 = log_binomial + i * log_q + j * log_rest +
                      (static_cast<double>(i) * i - i) / (2 * z * z) + std::log(0.5) +
                      LogErfc((i - z0) / width);
    const double s1 = log_binomial + j * log_q + i * log_rest + (j * j - j) / (2 * z * z) +
                      std::log(0.5) + LogErfc((z0 - j) / width);
    sum.Add(s0, sign);
    sum.Add(s1, sign);
    // A is at least 1, so what is left out is below the last bit of its logarithm's neighbours.
    if (std::max(s0, s1) < -35 && i > order) return sum.Log();
    const double factor = (order - i) / (i + 1);
    log_binomial += std::log(std::abs(factor));
    if (factor < 0) sign = -sign;
  }
  return kInfinity;
}

std::vector<double> DefaultOrders() {
  std::vector<double> orders;
  for (int tenths = 11; tenths <= 109; ++tenths) orders.push_back(tenths / 10.0);
  for (int order = 12; order <= 63; ++order) orders.push_back(order);
  for (int order : {128, 256, 512, 1024}) orders.push_back(order);
  return orders;
}

}  // namespace

double SubsampledGaussianRdp(double order, double q, double z) {
  SHOAL_CHECK(order > 1 && q >= 0 && q <= 1 && z >= 0)
      << "order " << order << ", sampling rate " << q << ", noise multiplier " << z;
  if (q == 0) return 0;
  if (z == 0) return kInfinity;
  if (q == 1) return order / (2 * z * z);
  const double log_moment = order == std::floor(order)
                                ? LogMomentWhole(static_cast<int64_t>(order), q, z)
                                : LogMomentFractional(order, q, z);
  return std::max(0.0, log_moment / (order - 1));
}

PrivacyAccountant::PrivacyAccountant() : PrivacyAccountant(DefaultOrders()) {}

PrivacyAccountant::PrivacyAccountant(std::vector<double> orders)
    : orders_(std::move(orders)), rdp_(orders_.size(), 0.0) {
  SHOAL_CHECK(!orders_.empty()) << "an accountant needs an order";
}

absl::Status PrivacyAccountant::Compose(const PrivacyEvent& event) {
  if (!(event.sampling_rate >= 0 && event.sampling_rate <= 1) ||
      !(event.noise_multiplier >= 0 && std::isfinite(event.noise_multiplier)) || event.rounds < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("privacy of ", event.rounds, " rounds with sampling rate ",
                     event.sampling_rate, " and noise multiplier ", event.noise_multiplier,
                     ": the rate must be in [0, 1], the multiplier and the rounds not negative"));
  }
  if (event.rounds == 0) return absl::OkStatus();
  const bool same = !history_.empty() && history_.back().sampling_rate == event.sampling_rate &&
                    history_.back().noise_multiplier == event.noise_multiplier;
  if (same) {
    history_.back().rounds += event.rounds;
  } else {
    history_.push_back(event);
    per_round_.clear();
    for (double order : orders_) {
      per_round_.push_back(
          SubsampledGaussianRdp(order, event.sampling_rate, event.noise_multiplier));
    }
    before_ = rdp_;
  }
  // From the merged event as a whole, so that a resumed run has the same bits.
  for (size_t k = 0; k < orders_.size(); ++k) {
    rdp_[k] = before_[k] + static_cast<double>(history_.back().rounds) * per_round_[k];
  }
  return absl::OkStatus();
}

PrivacySpent PrivacyAccountant::Spent(double delta) const {
  SHOAL_CHECK(delta > 0 && delta < 1) << "delta " << delta << " is not in (0, 1)";
  PrivacySpent best{.epsilon = kInfinity, .order = orders_[0]};
  for (size_t k = 0; k < orders_.size(); ++k) {
    const double order = orders_[k], rdp = rdp_[k];
    double epsilon = kInfinity;
    if (delta * delta + std::expm1(-rdp) > 0) {
      epsilon = 0;  // KL <= rdp bounds the total variation by delta (Bretagnolle and Huber 1979)
    } else if (order > 1.01) {
      epsilon = rdp + std::log1p(-1 / order) - std::log(delta * order) / (order - 1);
    }
    epsilon = std::max(0.0, epsilon);
    if (epsilon < best.epsilon) best = {.epsilon = epsilon, .order = order};
  }
  return best;
}

absl::StatusOr<double> CalibrateNoiseMultiplier(double epsilon, double delta, double sampling_rate,
                                                int64_t rounds, const PrivacyAccountant& before) {
  if (!(epsilon > 0) || !(delta > 0 && delta < 1) || !(sampling_rate > 0 && sampling_rate <= 1) ||
      rounds < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("no noise multiplier for epsilon ", epsilon, ", delta ", delta,
                     ", sampling rate ", sampling_rate, " and ", rounds,
                     " rounds: epsilon must be positive, delta in (0, 1), the rate in (0, 1], "
                     "rounds at least 1"));
  }
  const auto enough = [&](double z) {
    PrivacyAccountant accountant = before;
    const absl::Status composed = accountant.Compose(
        {.sampling_rate = sampling_rate, .noise_multiplier = z, .rounds = rounds});
    return composed.ok() && accountant.Spent(delta).epsilon <= epsilon;
  };
  constexpr double kMost = 1e6;
  double high = 1;
  while (!enough(high)) {
    high *= 2;
    if (high > kMost) {
      return absl::OutOfRangeError(absl::StrCat(
          "epsilon ", epsilon, " at delta ", delta, " over ", rounds,
          " rounds needs a noise multiplier above ", kMost,
          before.history().empty()
              ? ""
              : absl::StrCat(", since ", before.Spent(delta).epsilon, " is spent already")));
    }
  }
  double low = high / 2;
  while (low > 1e-6 && enough(low)) {
    high = low;
    low /= 2;
  }
  while (high - low > 1e-6 * high) {
    const double middle = 0.5 * (low + high);
    (enough(middle) ? high : low) = middle;
  }
  return high;
}

}  // namespace shoal
