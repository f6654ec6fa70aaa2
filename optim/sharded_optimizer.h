// The one optimizer that every loop steps through: update rules applied to the elements that this
// rank owns under the ZeRO stage (all of them at stage 0, a shard above).
//
// Offloaded states stream (Rajbhandari et al. 2021, "ZeRO-Infinity", section 5.2): while a unit is
// updated the next one's are read and the last one's written, and two units' are in memory at most
// (of rules that update several units together, two such rounds'). What lies in host memory beside
// a device is updated there ([Note: what the host updates] in parallel/sharded_unit.h).
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/offload.h"
#include "optim/update_rule.h"
#include "optim/whole_rule.h"
#include "parallel/sharded_parameters.h"

namespace shoal {

class ShardedOptimizer {
 public:
  static constexpr char kEma[] = "ema";  // State of that name: see Options::ema_decay

  struct Options {
    bool decay_all = false;  // Weight decay on every weight, whatever its spec says
    // Of weights whose specs say whole_update; null: there are none, and `rule` updates all.
    std::shared_ptr<const WholeRule> whole_rule = nullptr;
    // Set: a running mean of the weights, mean = decay * mean + (1 - decay) * weights after each
    // update (Polyak and Juditsky 1992).
    std::optional<double> ema_decay = std::nullopt;
  };
  // `parameters` must outlive the optimizer.
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
    std::vector<int64_t> shape;  // Of the whole state: the weight's, or what its rule keeps of it
    int64_t begin;  // Elements [begin, begin + data.numel()) of that, as it lies in memory
    Tensor data;    // A view of the live state
  };
  std::vector<NamedPiece> PiecesToSave() const;
  // What this rank must fill on loading (more than it saves at stage 0). SyncFromMaster() follows.
  std::vector<NamedPiece> PiecesToLoad() const;

  // After the weights were given their start values: the mean begins as they are.
  void StartEma();
  bool has_ema() const { return ema_decay_.has_value(); }
  // Exchanges the mean and the weights, and publishes; a second call undoes the first, to the last
  // bit. Collective.
  void SwapEma();

  // Every state to zeros, as before the first step, and the mean to the weights.
  void ResetStates();
  const UpdateRule& rule() const { return *rule_; }
  // The rule's state of that name: a view a slice of ShardedParameters::optimizer_slices(). Without
  // a whole_rule.
  std::vector<Tensor> State(const std::string& name) const;

  // Of the rules' states and the mean: where the rank computes, in the host's memory beside that,
  // on disk in whole pages.
  int64_t state_bytes() const;
  int64_t state_bytes_in_host() const;
  int64_t state_bytes_on_disk() const;

 private:
  // Elements that `rule` updates alike, padding left out.
  struct Segment {
    int64_t begin;  // Of the unit
    double learning_rate_multiplier;
    MasterRun master;
    UpdateOperands operands;  // Views; without weights and compute_copy, which `master` has
  };
  struct OwnedStates {
    ShardedUnit* unit;
    OptimizerSlice slice;
    // Of `rule`: each as long as the slice or, where other weights update as wholes, as all
    // segments.
    std::vector<Tensor> states;
    std::vector<Segment> segments;
    int whole = -1;  // Of wholes_; -1: all of its weights are in segments
    Tensor ema;      // As long as the slice, or undefined
    // All that an update reads or writes, but for the gradients.
    std::vector<std::pair<Tensor, OffloadAccess>> used;

    MasterRun master() const { return slice.Master(0, slice.numel()); }
  };

  Tensor Zeros(const ShardedUnit& unit, int64_t numel, at::ScalarType dtype) const {
    return OptimizerZeros(parameters_.options(), numel,
                          at::TensorOptions(dtype).device(unit.device()));
  }
  // Calls visit(tensor) for the states and the mean of a unit.
  template <class Visit>
  void ForStates(const OwnedStates& owned, Visit&& visit) const;
  int64_t StateBytes() const;
  // One after the last of the units that are updated together with owned_[begin].
  size_t RoundEnd(size_t begin) const;
  void UpdateRound(size_t begin, size_t end, const UpdateOptions& options);
  void UpdateSegment(Segment& segment, const UpdateOptions& options) const;
  void MoveEma(OwnedStates& owned) const;
  void AddWhole(OwnedStates& owned, bool decay_all);
  void AddSegments(OwnedStates& owned, bool decay_all);
  std::vector<NamedPiece> Pieces(bool saving) const;
  void AddWholePieces(const OwnedStates& owned, bool saving, std::vector<NamedPiece>& pieces) const;

  std::unique_ptr<UpdateRule> rule_;
  std::shared_ptr<const WholeRule> whole_rule_;
  std::optional<double> ema_decay_;
  ShardedParameters& parameters_;
  std::vector<OwnedStates> owned_;
  std::vector<WholeUnit> wholes_;
};

}  // namespace shoal
