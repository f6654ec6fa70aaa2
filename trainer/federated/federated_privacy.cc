// How much noise a run of federated averaging adds, and what its rounds have cost so far.
#include <algorithm>
#include <cmath>

#include "trainer/federated/federated_averaging.h"

namespace shoal {

// What a calibrated noise multiplier depends on; empty: the recipe gives the multiplier itself.
std::vector<double> FederatedAveraging::PrivacyPlan() const {
  const FederatedPrivacy& privacy = options_.federated.privacy();
  if (!is_private() || !privacy.has_target_epsilon()) return {};
  return {privacy.target_epsilon(), privacy.delta(), SamplingRate(),
          static_cast<double>(options_.rounds)};
}

absl::Status FederatedAveraging::SetNoise(double noise_multiplier) {
  noise_multiplier_ = update_noise_multiplier_ = noise_multiplier;
  if (!options_.federated.privacy().adaptive_clip() || noise_multiplier == 0)
    return absl::OkStatus();
  SHOAL_ASSIGN_OR_RETURN(update_noise_multiplier_,
                         UpdateNoiseMultiplier(noise_multiplier, clients_a_round_ / 20));
  return absl::OkStatus();
}

absl::Status FederatedAveraging::PreparePrivacy() {
  const FederatedPrivacy& privacy = options_.federated.privacy();
  double noise_multiplier = privacy.noise_multiplier();
  if (privacy.has_target_epsilon()) {
    SHOAL_ASSIGN_OR_RETURN(noise_multiplier,
                           CalibrateNoiseMultiplier(privacy.target_epsilon(), privacy.delta(),
                                                    SamplingRate(), options_.rounds));
  }
  SHOAL_RETURN_IF_ERROR(SetNoise(noise_multiplier));
  if (!privacy.adaptive_clip()) return absl::OkStatus();
  SHOAL_ASSIGN_OR_RETURN(
      adaptive_clip_,
      AdaptiveClip::Create({.initial_clip = privacy.clip_norm(),
                            .quantile = privacy.clip_quantile(),
                            .learning_rate = privacy.clip_learning_rate(),
                            .count_stddev = noise_multiplier > 0 ? clients_a_round_ / 20 : 0}));
  return absl::OkStatus();
}

// accountant_ and round_ are the checkpoint's. A recipe that plans as the run did goes on with the
// same noise, to the bit; another one (more rounds, another epsilon) spends what is left.
absl::Status FederatedAveraging::ResumePrivacy(const std::vector<double>& planned_for,
                                               double noise_multiplier) {
  const FederatedPrivacy& privacy = options_.federated.privacy();
  const int64_t left = options_.rounds - round_;
  if (!is_private() || left <= 0) return absl::OkStatus();
  if (privacy.has_target_epsilon() && planned_for != PrivacyPlan()) {
    // A sliver that is left would be spent on noise without end.
    const double spent = accountant_.Spent(privacy.delta()).epsilon;
    if (spent > 0.999 * privacy.target_epsilon()) {
      return absl::OutOfRangeError(
          absl::StrCat("epsilon ", privacy.target_epsilon(), " is spent: the checkpoint's ", round_,
                       " rounds cost ", spent, " at delta ", privacy.delta(), ", and ", left,
                       " more are asked for"));
    }
    SHOAL_ASSIGN_OR_RETURN(noise_multiplier,
                           CalibrateNoiseMultiplier(privacy.target_epsilon(), privacy.delta(),
                                                    SamplingRate(), left, accountant_));
  }
  if (privacy.has_target_epsilon()) SHOAL_RETURN_IF_ERROR(SetNoise(noise_multiplier));
  if (noise_multiplier_ > 0 && !std::isfinite(accountant_.Spent(privacy.delta()).epsilon)) {
    return absl::FailedPreconditionError(
        "the checkpoint has rounds without noise, which no epsilon covers: choose another "
        "run.output_dir, or leave out federated.privacy's noise");
  }
  return absl::OkStatus();
}

std::optional<double> FederatedAveraging::PlannedEpsilon() const {
  if (!is_private() || noise_multiplier_ == 0) return std::nullopt;
  PrivacyAccountant accountant = accountant_;
  SHOAL_CHECK(accountant
                  .Compose({.sampling_rate = SamplingRate(),
                            .noise_multiplier = noise_multiplier_,
                            .rounds = std::max<int64_t>(0, options_.rounds - round_)})
                  .ok());
  return accountant.Spent(options_.federated.privacy().delta()).epsilon;
}

}  // namespace shoal
