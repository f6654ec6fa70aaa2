// Which experts compute what of which token, and the losses that keep routers useful.
//
// Legend: B sequences, T tokens, R = B T, E experts, k choices a token, S rows (choices taken).
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/experts.h"
#include "models/block.h"
#include "parallel/context_parallel.h"

namespace shoal {

struct Routing {
  ExpertRows rows;
  std::vector<int64_t> rows_of_expert;  // How many of the rows, sorted by expert, each takes
  // (R, k) with gradient: each choice's score, by default over the sum of its token's (Jiang et al.
  // 2024, section 2.1); zero of one that is not taken.
  Tensor weights_RK;
  // float64, in host memory: choices of each expert in each sequence, taken or not: of these
  // tokens, and of those that other ranks have of the sequence too.
  Tensor chosen_BE, chosen_in_sequence_BE;
  int64_t dropped = 0;  // Choices that are not taken
};

struct RouterOptions {
  int64_t choices = 1;  // A token
  // Above 1: experts stand in so many groups of equal size, and a token chooses from the
  // `groups_per_token` whose two best experts add up to most (DeepSeek-AI 2024, DeepSeek-V3,
  // section 2.1.2).
  int64_t groups = 1, groups_per_token = 1;
  bool normalize = true;  // A token's weights: its scores over their sum,
  double scale = 1;       // times this
  int64_t capacity = 0;   // See RouteTokens
};

// scores_BTE: float32 or float64, with gradient. Each token chooses the experts of the highest
// scores; bias_E, unless undefined, is added to them for that and for nothing else (Wang et al.
// 2024, "Auxiliary-Loss-Free Load Balancing", equation 4). capacity > 0: an expert takes the first
// `capacity` tokens of a sequence that choose it, and no more (Lepikhin et al. 2020, with sequences
// as groups). Rows of an expert lie in the order of the tokens. `context`: the ranks that share the
// sequences, over which choices are counted, collectively; null: nobody does, or nobody counts.
Routing RouteTokens(const Tensor& scores_BTE, const Tensor& bias_E, const RouterOptions& options,
                    const ContextParallel* context = nullptr);

// What an expert takes of a sequence: factor * choices * tokens / experts, rounded up.
int64_t ExpertCapacity(double factor, int64_t choices, int64_t tokens, int64_t experts);

// Sums over tokens, with gradient. The load-balancing loss of Switch Transformers (Fedus et al.
// 2022, equations 4 to 6) and Mixtral, E sum_e f_e P_e, f_e the choices of expert e over the
// tokens, P_e the mean of its probability. Here of each sequence by itself (DeepSeek-AI 2024,
// equations 17 to 20) and counted for each of its tokens: how a batch is cut into ranks and
// micro-batches changes nothing. Of a sequence of `length` tokens that several ranks share, each
// has the part of its own tokens: chosen_BE is of all (Routing::chosen_in_sequence_BE).
Tensor BalanceLossSum(const Tensor& probabilities_BTE, const Tensor& chosen_BE, int64_t length);
// The square of log sum exp of the logits (Zoph et al. 2022, ST-MoE, equation 5).
Tensor ZLossSum(const Tensor& logits_BTE);

}  // namespace shoal
