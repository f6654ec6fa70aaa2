#include "trainer/rlhf/preference_losses.h"

#include <algorithm>

#include <ATen/ATen.h>

namespace shoal {

using at::Tensor;

Tensor DpoLoss(const Tensor& chosen_logratio_P, const Tensor& rejected_logratio_P,
               const DpoOptions& options) {
  const Tensor logits_P = options.beta * (chosen_logratio_P - rejected_logratio_P);
  const double e = options.label_smoothing;
  const Tensor kept_P = -at::log_sigmoid(logits_P);
  return e == 0 ? kept_P : (1 - e) * kept_P - e * at::log_sigmoid(-logits_P);
}

Tensor IpoLoss(const Tensor& chosen_logratio_P, const Tensor& rejected_logratio_P, double beta) {
  return (chosen_logratio_P - rejected_logratio_P - 1 / (2 * beta)).square();
}

Tensor SimPoLoss(const Tensor& chosen_mean_logprob_P, const Tensor& rejected_mean_logprob_P,
                 const SimPoOptions& options) {
  return -at::log_sigmoid(options.beta * (chosen_mean_logprob_P - rejected_mean_logprob_P) -
                          options.gamma);
}

Tensor KtoLoss(const Tensor& logratio_A, const Tensor& desirable_A, const Tensor& z,
               const KtoOptions& options) {
  const Tensor gain_A = options.beta * (logratio_A - z.detach());
  return at::where(desirable_A, options.desirable_weight * (1 - at::sigmoid(gain_A)),
                   options.undesirable_weight * (1 - at::sigmoid(-gain_A)));
}

Tensor KtoReferencePoint(const Tensor& mismatched_logratio_sum, double count) {
  return (mismatched_logratio_sum.detach() / std::max(1.0, count)).clamp_min(0);
}

Tensor OrpoOddsLoss(const Tensor& chosen_mean_logprob_P, const Tensor& rejected_mean_logprob_P) {
  const auto log_odds = [](const Tensor& logprob) {
    return logprob - at::log(-at::expm1(logprob));
  };
  return -at::log_sigmoid(log_odds(chosen_mean_logprob_P) - log_odds(rejected_mean_logprob_P));
}

Tensor BradleyTerryLoss(const Tensor& chosen_score_P, const Tensor& rejected_score_P,
                        const Tensor& margin_P, double centering) {
  Tensor difference_P = chosen_score_P - rejected_score_P;
  if (margin_P.defined()) difference_P = difference_P - margin_P;
  const Tensor loss_P = -at::log_sigmoid(difference_P);
  return centering == 0 ? loss_P
                        : loss_P + centering * (chosen_score_P + rejected_score_P).square();
}

}  // namespace shoal
