// What a layer of experts computes: each of several matrices times the rows that are its own.
//
// Legend: R tokens, k choices of experts a token, S rows (choices that an expert takes, sorted by
// expert), C channels.
#pragma once

#include <cstdint>
#include <span>

#include "core/parameter.h"

namespace shoal {

// Rows that lie end to end, rows[g] of them for weights[g], times those: y = x W_g^T. x: (S, in),
// S = sum of rows; weights: (out, in) each. Returns (S, out). Backward: returns dL/dx; adds each
// dL/dW_g to weights[g].grad where that is defined, as Linear does. A matrix without rows is not
// read, and gets no gradient.
Tensor GroupedLinear(const Tensor& x_SI, std::span<const int64_t> rows,
                     std::span<const Parameter> weights);

// Where the rows of experts come from and go to.
struct ExpertRows {
  Tensor choice_S;  // int64: row s is choice choice_S[s] % k of token choice_S[s] / k
  // int64 (R, k): the row of each choice; of one that no expert takes: 0
  Tensor row_RK;
  Tensor taken_RK;  // The type of sums, 1 or 0; undefined: every choice is taken
};

// (R, C) -> (S, C): each row its token. Differentiable; sums are float32 (float64 in float64) and
// taken in the order of the choices.
Tensor TokensToRows(const Tensor& x_RC, const ExpertRows& rows);

// (S, C) -> (R, C): each token the sum of its rows, weighted. weights_RK: float32 (float64 in
// float64), zero where a choice is not taken. Differentiable in both; sums as above, rounded once.
Tensor RowsToTokens(const Tensor& rows_SC, const Tensor& weights_RK, const ExpertRows& rows);

}  // namespace shoal
