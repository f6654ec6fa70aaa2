// The states that the checkpoint tests save and load: what N ranks hold of them under one layout or
// another.
#pragma once

#include <string>
#include <vector>

#include <ATen/ATen.h>

#include "checkpoint/checkpoint.h"

namespace shoal::testing {

struct WholeTensor {
  std::string name;
  at::Tensor value;
};

// Tensors of odd sizes, several dtypes, one of no dimensions and one of no elements. `seed` tells
// states apart.
inline std::vector<WholeTensor> MakeState(int seed) {
  const auto values = [&](at::IntArrayRef shape, int stride) {
    int64_t numel = 1;
    for (const int64_t size : shape) numel *= size;
    return (at::arange(numel, at::kDouble) * stride + seed * 1000).reshape(shape);
  };
  return {
      {"weights/model.embed_tokens.weight", values({13, 7}, 1).to(at::kFloat)},
      {"weights/model.layers.0.mlp.up_proj.weight", values({5, 11}, 3).to(at::kBFloat16)},
      {"weights/model.norm.weight", values({7}, 2).to(at::kFloat)},
      {"adam_m/model.embed_tokens.weight", values({13, 7}, 5).to(at::kDouble)},
      {"counter", values({}, 1).to(at::kLong)},
      {"flags", values({3}, 1).to(at::kByte)},
      {"nothing", at::empty({0, 4}, at::kFloat)},
  };
}

enum class Layout {
  kSharded,     // rank r holds the r-th of n nearly equal ranges of every flattened tensor
  kReplicated,  // every rank holds everything
  kUneven,      // rank r holds the tensors whose index is r modulo n, whole
  kColumns,     // two-dimensional tensors are cut by columns: a piece a row and rank
};

// What rank `rank` of `ranks` holds. The pieces share no memory with `state`.
inline std::vector<StatePiece> PiecesOf(const std::vector<WholeTensor>& state, Layout layout,
                                        int rank, int ranks) {
  std::vector<StatePiece> pieces;
  const auto add = [&](const WholeTensor& tensor, int64_t begin, int64_t end) {
    pieces.push_back({.name = tensor.name,
                      .shape = tensor.value.sizes().vec(),
                      .begin = begin,
                      .data = tensor.value.reshape({-1}).slice(0, begin, end).clone()});
  };
  for (size_t i = 0; i < state.size(); ++i) {
    const int64_t numel = state[i].value.numel();
    const bool is_matrix = state[i].value.dim() == 2 && numel > 0;
    if (layout == Layout::kReplicated) {
      add(state[i], 0, numel);
    } else if (layout == Layout::kUneven) {
      if (static_cast<int>(i) % ranks == rank) add(state[i], 0, numel);
    } else if (layout == Layout::kColumns && is_matrix) {
      const int64_t columns = state[i].value.size(1);
      for (int64_t row = 0; row < state[i].value.size(0); ++row) {
        add(state[i], row * columns + columns * rank / ranks,
            row * columns + columns * (rank + 1) / ranks);
      }
    } else {
      add(state[i], numel * rank / ranks, numel * (rank + 1) / ranks);
    }
  }
  return pieces;
}

// The same pieces with other contents, to load into.
inline std::vector<StatePiece> EmptyPieces(const std::vector<WholeTensor>& state, Layout layout,
                                           int rank, int ranks) {
  std::vector<StatePiece> pieces = PiecesOf(state, layout, rank, ranks);
  for (StatePiece& piece : pieces) piece.data.fill_(99);
  return pieces;
}

// OK if the pieces hold what `state` says, to the last bit.
inline absl::Status CompareWithState(const std::vector<StatePiece>& pieces,
                                     const std::vector<WholeTensor>& state) {
  for (const StatePiece& piece : pieces) {
    for (const WholeTensor& tensor : state) {
      if (tensor.name != piece.name) continue;
      const at::Tensor want =
          tensor.value.reshape({-1}).slice(0, piece.begin, piece.begin + piece.data.numel());
      if (at::equal(want, piece.data)) continue;
      std::ostringstream text;
      text << piece.name << " from element " << piece.begin << ": got " << piece.data << ", want "
           << want;
      return absl::InternalError(text.str());
    }
  }
  return absl::OkStatus();
}

inline TrainerState StateOfStep(int64_t step) {
  TrainerState state;
  state.set_step(step);
  state.set_tokens(step * 1000);
  state.mutable_data()->set_epoch(1);
  state.mutable_data()->set_sequences(step * 8);
  state.set_recipe_yaml("run:\n  seed: 7\n");
  state.set_seed(7);
  state.mutable_layout()->set_ranks(2);
  (*state.mutable_extra())["sampler"] = std::string("\0\1\2", 3);
  return state;
}

}  // namespace shoal::testing
