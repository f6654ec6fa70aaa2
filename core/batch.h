// One rank's share of one micro-batch, made in host memory. Where the model computes on a device,
// operations are handed a copy there of all but sequences_B and lengths_B, which the host reads.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include <ATen/core/Tensor.h>

#include "core/status.h"

namespace shoal {

// Legend: B sequences, T tokens.
struct Batch {
  at::Tensor tokens_BT;     // int64: the inputs
  at::Tensor targets_BT;    // int64: the token to predict at each place (already shifted),
                            // kIgnoreIndex: none
  at::Tensor positions_BT;  // int64: place in its document, from 0
  at::Tensor documents_BT;  // int32: number of the document in its row, non-decreasing; undefined:
                            // one a row. Attention never crosses documents.
  // (B) int64: a number of its own for each row that the run trains on, on whatever rank and in
  // whatever order; names what is random about the row (dropout). Undefined where nothing is.
  at::Tensor sequences_B;
  // (B) int64: so many places of each row, the first ones, are read, the rest is padding.
  // Undefined: all are.
  at::Tensor lengths_B;
  int64_t num_targets = 0;  // entries of targets_BT that are not kIgnoreIndex
  // What the run's objective needs besides (trainer/objective.h): advantages, log-probabilities of
  // a reference, weights, by name. Empty in plain training.
  std::map<std::string, at::Tensor> named;

  const at::Tensor& Named(const std::string& name) const {
    const auto found = named.find(name);
    SHOAL_CHECK(found != named.end()) << "the batch carries no tensor \"" << name << "\"";
    return found->second;
  }

  static constexpr int64_t kIgnoreIndex = -100;
};

}  // namespace shoal
