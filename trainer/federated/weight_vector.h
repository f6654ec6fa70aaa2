// A rank's part of a model's trainable weights as one vector: what clients start from, updates,
// sums and control variates are, however the model is cut into units and slices.
//
// The vector is the optimizer's slices end to end (ShardedParameters::optimizer_slices()). Of a
// model of several stacked copies (ModelConfig::copies, each weight (copies, ...)) it is one copy's
// part, which is laid out as the single model's.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "checkpoint/checkpoint.h"
#include "models/model.h"
#include "parallel/sharded_unit.h"

namespace shoal {

// The weights of each slice: what WeightVector reads and writes.
std::vector<Tensor> WeightsOf(const std::vector<OptimizerSlice>& slices);

class WeightVector {
 public:
  explicit WeightVector(const std::vector<OptimizerSlice>& slices, int copies = 1);

  int64_t size() const { return size_; }  // Padding included
  int copies() const { return copies_; }

  // `tensors`: one a slice and as long as it, such as the slices' weights or an optimizer's state.
  // vector: (size) on their device receives copy `copy` of them.
  void Read(absl::Span<const Tensor> tensors, int copy, Tensor& vector) const;
  // The other way. A vector in host memory goes to the tensors' device in one piece, and has been
  // read, unless its memory is locked, when this returns.
  void Write(const Tensor& vector, int copy, absl::Span<const Tensor> tensors) const;

  // The vector of one copy as parts of whole weights, as checkpoints know them:
  // "<prefix>/<weight>". saving: without what another rank owns. Of one copy.
  std::vector<StatePiece> Pieces(const std::string& prefix, const Tensor& vector,
                                 bool saving) const;

  // Elements [offset, offset + count) of the vector are trainable coordinates [first, first +
  // count) of the whole model, its weights end to end in block order; padding is in none. Of one
  // copy.
  struct Coordinates {
    int64_t offset;
    int64_t first;
    int64_t count;
  };
  std::vector<Coordinates> CoordinatesIn(const Model& model) const;

 private:
  struct Run {
    int slice;
    int64_t begin;   // Of the slice, of copy 0; copy c is c * count further
    int64_t offset;  // Of the vector
    int64_t count;
  };

  std::vector<OptimizerSlice> slices_;
  int copies_;
  std::vector<Run> runs_;
  int64_t size_ = 0;
};

}  // namespace shoal
