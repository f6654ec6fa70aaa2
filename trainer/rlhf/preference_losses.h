// Losses on pairs of answers, of which people (or a rule) chose one: pure functions of
// log-probabilities, one loss a pair, differentiable in what the trained policy computed. The
// caller sums them and divides by the global number of pairs.
//
// Legend: P pairs. A log-ratio is log pi(answer) - log reference(answer), summed over the answer's
// tokens: (P), of any floating dtype. A mean log-probability is divided by the answer's length.
#pragma once

#include <ATen/core/Tensor.h>

namespace shoal {

// -logsigmoid(beta d) with d = chosen - rejected log-ratio: ln 2 where the policy is the reference
// (Rafailov et al. 2023, "Direct Preference Optimization", eq. 7). label_smoothing e is the
// probability that a label is flipped: (1 - e) L(d) + e L(-d) (Mitchell 2023, cDPO).
struct DpoOptions {
  double beta = 0.1;
  double label_smoothing = 0;  // In [0, 0.5)
};
at::Tensor DpoLoss(const at::Tensor& chosen_logratio_P, const at::Tensor& rejected_logratio_P,
                   const DpoOptions& options);

// (d - 1 / (2 beta))^2 (Azar et al. 2023, "A General Theoretical Paradigm", eq. 17). On log-ratios
// divided by the answers' lengths it is the form that the authors recommended later.
at::Tensor IpoLoss(const at::Tensor& chosen_logratio_P, const at::Tensor& rejected_logratio_P,
                   double beta);

// -logsigmoid(beta (c - r) - gamma) of mean log-probabilities, without a reference (Meng et al.
// 2024, "SimPO", eq. 6). gamma is the margin itself, not its share of beta.
struct SimPoOptions {
  double beta = 2.0;
  double gamma = 0.5;
};
at::Tensor SimPoLoss(const at::Tensor& chosen_mean_logprob_P,
                     const at::Tensor& rejected_mean_logprob_P, const SimPoOptions& options);

// Ethayarajh et al. 2024, "KTO", eq. 8, for answers A that are good or bad alone, without pairs:
// good answers lose weight (1 - sigmoid(beta (logratio - z))), bad ones weight (1 - sigmoid(beta (z
// - logratio))). `desirable_A` is bool. `z` (see KtoReferencePoint) takes no gradient.
struct KtoOptions {
  double beta = 0.1;
  double desirable_weight = 1.0;
  double undesirable_weight = 1.0;
};
at::Tensor KtoLoss(const at::Tensor& logratio_A, const at::Tensor& desirable_A, const at::Tensor& z,
                   const KtoOptions& options);
// z = max(0, mean log-ratio of answers to other prompts than their own), detached; () from the sum
// over the global batch and its count.
at::Tensor KtoReferencePoint(const at::Tensor& mismatched_logratio_sum, double count);

// -logsigmoid of the log odds ratio of mean log-probabilities (Hong et al. 2024, "ORPO", eq. 6):
// log(p / (1 - p)) of the chosen less that of the rejected. Its weight and the chosen answers' own
// loss are added by the caller (eq. 8).
at::Tensor OrpoOddsLoss(const at::Tensor& chosen_mean_logprob_P,
                        const at::Tensor& rejected_mean_logprob_P);

// -logsigmoid(chosen - rejected - margin) of a reward model's scores (Bradley & Terry 1952; Ouyang
// et al. 2022, eq. 1), + centering (chosen + rejected)^2, which keeps scores near zero (Eisenstein
// et al. 2023). `margin_P` may be undefined: 0.
at::Tensor BradleyTerryLoss(const at::Tensor& chosen_score_P, const at::Tensor& rejected_score_P,
                            const at::Tensor& margin_P = {}, double centering = 0);

}  // namespace shoal
