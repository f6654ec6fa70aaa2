// The one optimizer that every loop steps through: an update rule applied to the elements that this
// rank owns under the ZeRO stage (all of them at stage 0, a shard above).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "optim/update_rule.h"
#include "parallel/sharded_parameters.h"

namespace shoal {

class ShardedOptimizer {
 public:
  // `parameters` must outlive the optimizer. decay_all: weight decay on every weight, whatever its
  // spec says.
  struct Options {
    bool decay_all = false;
  };
  ShardedOptimizer(std::unique_ptr<UpdateRule> rule, ShardedParameters& parameters,
                   const Options& options);

  // Updates the owned weights from their gradients and publishes them to the other ranks.
  // Collective.
  void Step(const UpdateOptions& options);

  // A piece of one weight's state that this rank saves; pieces of all ranks tile every weight once.
  struct NamedPiece {
    std::string
        name;  // "adam_m/model.norm.weight"; "weights/..." for the master weights, frozen ones too
    const ParameterSpec* spec;
    int64_t
        begin;    // Elements [begin, begin + data.numel()) of the whole weight as it lies in memory
    Tensor data;  // A view of the live state
  };
  std::vector<NamedPiece> PiecesToSave() const;
  // What this rank must fill on loading (more than it saves at stage 0). SyncFromMaster() follows.
  std::vector<NamedPiece> PiecesToLoad() const;

  // Every state to zeros, as before the first step.
  void ResetStates();
  const UpdateRule& rule() const { return *rule_; }
  // The rule's state of that name: a view a slice of ShardedParameters::optimizer_slices().
  std::vector<Tensor> State(const std::string& name) const;

  int64_t state_bytes() const;  // Held here by the rule's states

 private:
  struct OwnedStates {
    OptimizerSlice slice;
    std::vector<Tensor> states;            // Each as long as the slice
    std::vector<UpdateOperands> segments;  // Views, cut where decay changes, padding left out
  };

  std::vector<NamedPiece> Pieces(bool saving) const;

  std::unique_ptr<UpdateRule> rule_;
  ShardedParameters& parameters_;
  std::vector<OwnedStates> owned_;
};

}  // namespace shoal
