// What a run of the subsampled Gaussian mechanism costs: (epsilon, delta) differential privacy
// under adding or removing one client, by Renyi differential privacy (Mironov 2017; Mironov, Talwar
// and Zhang 2019).
//
// It accounts for Poisson sampling: every client joins every round by its own coin of probability
// q, rounds without clients add noise and count too. A cohort of fixed size m of N is not that
// mechanism; q = m / N is then the customary approximation, which a report must name. q = 1 is the
// plain Gaussian mechanism and holds for any round in which all take part.
//
// Golden values: z = 1.5, q = 0.04, 2250 rounds, delta = 1e-5: epsilon 7.32911117143 (Opacus'
// tests).
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

#include "core/status.h"

namespace shoal {

// `rounds` rounds of sampling rate q and noise multiplier z: noise of standard deviation z times
// the sensitivity on the sum.
struct PrivacyEvent {
  double sampling_rate = 0;     // q in [0, 1]
  double noise_multiplier = 0;  // z > 0
  int64_t rounds = 0;
};

struct PrivacySpent {
  double epsilon = 0;
  double order =
      0;  // The Renyi order that gave it; at an end of the orders a tighter one may exist
};

// Renyi divergence of one round at `order` > 1: Mironov et al. 2019, equation 4 (whole orders) and
// section 3.3 (others). 0 where q = 0, infinite where z = 0.
double SubsampledGaussianRdp(double order, double sampling_rate, double noise_multiplier);

class PrivacyAccountant {
 public:
  // Orders 1.1, 1.2 ... 10.9, 12 ... 63, 128, 256, 512, 1024 unless given.
  PrivacyAccountant();
  explicit PrivacyAccountant(std::vector<double> orders);  // each > 1, at least one

  // InvalidArgument: q outside [0, 1], z negative or not finite, rounds negative.
  absl::Status Compose(const PrivacyEvent& event);

  // min over orders a of rdp + log(1 - 1/a) - log(delta a) / (a - 1), at least 0 (Canonne, Kamath
  // and Steinke 2020, proposition 12; Asoodeh et al. 2020). 0 < delta < 1. Infinite where z was 0.
  PrivacySpent Spent(double delta) const;

  // What Compose was told, equal neighbours merged: save it, and compose it again to resume.
  absl::Span<const PrivacyEvent> history() const { return history_; }

 private:
  std::vector<double> orders_;
  std::vector<double> rdp_;        // [order]
  std::vector<double> per_round_;  // [order] of one round of history_.back()
  std::vector<double> before_;     // [order] of what came before history_.back()
  std::vector<PrivacyEvent> history_;
};

// The smallest noise multiplier, to 1e-6 of itself, with which `rounds` rounds of rate q after
// those of `before` cost at most `epsilon` at `delta`, all together. InvalidArgument: epsilon not
// positive, delta outside (0, 1), q outside (0, 1], rounds < 1. OutOfRange: more than 1e6 would be
// needed, as where `before` has spent it all.
absl::StatusOr<double> CalibrateNoiseMultiplier(double epsilon, double delta, double sampling_rate,
                                                int64_t rounds,
                                                const PrivacyAccountant& before = {});

}  // namespace shoal
