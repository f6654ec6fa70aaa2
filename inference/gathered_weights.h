// The weights of a model in training, gathered out of a trainer's shards to where they are
// generated with, and the proof that they are the same. They lie where the trainer's do.
//
// Bytes that a rank sends for one gathering (N = shard ranks, S = pipeline stages, T = tensor
// ranks), by the communicators' own count; P_b and M_b are block b's elements on this tensor rank
// with and without ZeRO's padding, each in the compute dtype:
//
//   ZeRO stage 3     sum of the units' P (N-1)/N, all-gathers over mesh.shard()
//   S > 1            M_b of each block that this rank's stage holds, broadcasts over
//   mesh.pipeline() T > 1, kWhole    max over ranks of M_b, times (T-1), all-gathers over
//   mesh.tensor() otherwise        nothing: stages 0 to 2 of one pipeline stage hold the weights
//   whole, and where
//                    they lie as generation wants them they are used in place, without a copy
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/status.h"
#include "inference/weight_hash.h"
#include "models/forward.h"
#include "parallel/device_mesh.h"
#include "parallel/sharded_parameters.h"

namespace shoal {

class GatheredWeights {
 public:
  // What each rank gets.
  enum class Layout {
    kWhole,   // All weights whole: ranks generate on their own
    kTensor,  // Its part of each matrix: the ranks of mesh.tensor() generate together
  };
  // Borrowed: all outlive this. `model` is the one whose blocks are trained, as built for this
  // rank's place in the mesh.
  struct Source {
    const Model& model;
    ShardedParameters& parameters;
    DeviceMesh& mesh;
  };
  // Collective over the mesh, as are the calls below unless they say otherwise. No weights yet.
  static absl::StatusOr<GatheredWeights> Create(const Source& source, Layout layout);

  // Fills the weights with those of the trainer, after its optimizer's step. Internal: their hash
  // is not the trainer's.
  absl::Status Gather();
  // Gives the memory back. Not collective.
  void Release();

  bool gathered() const { return !weights_.empty(); }
  // The model that the weights fit: whole, or this rank's part without sequence parallelism. Not
  // collective.
  const Model& model() const { return model_; }
  std::span<const std::vector<Parameter>> weights() const { return weights_; }
  // Of the whole model, equal on every rank: the trainer's at the last Gather.
  uint64_t hash() const { return hash_; }
  int64_t held_bytes() const;  // On top of the trainer's own

  // Of the trainer's weights as they are now, by what each rank holds of them.
  uint64_t HashOfSource() const;

 private:
  struct Place {
    int unit, index;
  };
  GatheredWeights(const Source& source, Layout layout) : source_(source), layout_(layout) {}
  absl::Status FindStages();
  // The model as this tensor rank's weights fit it.
  const Model& LocalModel() const;
  bool UsesInPlace() const;
  void BindInPlace();
  void CopyLocalBlocks(std::vector<Tensor>& flats);
  void ShareOverStages(std::vector<Tensor>& flats);
  void BindCopies(const std::vector<Tensor>& flats);
  Tensor CopyBuffer(const ParameterSpec& spec, int stage);
  Tensor WholeBlock(int block, const Tensor& mine);
  uint64_t HashOfGathered() const;

  Source source_;
  Layout layout_;
  Model model_;
  std::vector<Model> tensor_models_;     // kWhole, several tensor ranks: each one's
  std::map<std::string, Place> places_;  // Of the weights that this rank's units hold, by name
  std::vector<int> stage_of_block_;      // The pipeline rank that has each block
  ModelWeights weights_;
  uint64_t hash_ = 0;
};

}  // namespace shoal
