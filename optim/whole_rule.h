// An optimizer's arithmetic where an element's step depends on others of its weight: Adafactor in
// adafactor.h, Muon in muon.h, AdamW with quantised moments in adamw_8bit.h. Under ZeRO and tensor
// parallelism a rank holds runs of a weight; what depends on the whole is summed or gathered over
// those ranks, so that any mesh steps as one process does.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "optim/update_rule.h"
#include "parallel/comm/communicator.h"
#include "parallel/comm/signature.h"
#include "parallel/flat_layout.h"
#include "parallel/split_master.h"

namespace shoal {

// What this rank owns of one weight within one shard of its unit.
struct WholePart {
  struct Run {
    int64_t first;  // Of the whole weight, as it lies in memory
    int64_t count;
    int64_t offset;  // From the part's first element
    bool counted;    // Of the tensor-parallel ranks that hold these elements one counts them
    bool owned;      // As ElementRun's: this rank saves them
  };
  int shard = 0;
  int64_t offset = 0;          // Of the unit, this rank's tensor-parallel part of it
  MasterRun master;            // (n)
  Tensor gradients;            // (n) gradient dtype
  std::vector<Tensor> states;  // (n), one of WholeRule::element_states each
  std::vector<Run> runs;
};

struct WholeWeight {
  int parameter = 0;  // Of the unit's layout
  const ParameterSpec* spec = nullptr;
  std::vector<int64_t> shape;    // Of the whole weight, dimensions as in memory
  bool decay = true;             // The rule's weight decay applies
  std::vector<WholePart> parts;  // One a shard held here: all of them at stage 0, else one or none
  std::vector<Tensor> shared;    // One of WholeRule::shared_states each, the same on every rank

  bool is_matrix() const { return shape.size() == 2; }
  // `of_rule` unless the weight's group has its own.
  double WeightDecay(double of_rule) const {
    return spec->weight_decay.value_or(decay ? of_rule : 0.0);
  }
};

// The weights of one flat unit (parallel/sharded_unit.h) that a WholeRule updates.
struct WholeUnit {
  const FlatLayout* layout = nullptr;
  at::Device device = at::kCPU;  // Of gradients, masters and states
  at::ScalarType master = at::kFloat;
  bool holds_all = true;           // Stage 0: this rank holds every shard
  Communicator* shard = nullptr;   // Ranks that each hold a shard, or (stage 0) all
  Communicator* tensor = nullptr;  // Those that hold parts of the matrices; null: this rank alone
  std::vector<WholeWeight> weights;

  int tensor_size() const { return tensor ? tensor->size() : 1; }
  int tensor_rank() const { return tensor ? tensor->rank() : 0; }
};

// The same without memory, for who foretells bytes.
struct WholeUnitShape {
  std::vector<std::vector<int64_t>> weights;  // WholeWeight::shape of each
  int64_t padded_numel = 0;                   // Of the unit
  int64_t shard_numel = 0;
  bool holds_all = true;
  at::ScalarType master = at::kFloat;
};

class WholeRule {
 public:
  struct State {
    std::string name;  // As in checkpoints
    at::ScalarType dtype;
    int64_t numel = 0;  // Of shared states
  };
  // One collective of an update.
  struct Call {
    bool along_tensor;  // Else along the unit's shards
    CollectiveKind kind;
    at::ScalarType dtype;
    int64_t numel;  // As Signature has it: of the smaller tensor
  };

  virtual ~WholeRule() = default;
  // Numbers kept for each element of a weight of that shape; zeros before the first step.
  virtual std::vector<State> element_states(const std::vector<int64_t>& shape,
                                            at::ScalarType master) const = 0;
  // Vectors kept beside it by every rank that holds a part.
  virtual std::vector<State> shared_states(const std::vector<int64_t>& shape,
                                           at::ScalarType master) const = 0;
  // What Update calls for a unit; along axes of one rank nothing is called.
  virtual std::vector<Call> Calls(const WholeUnitShape& unit) const = 0;
  // Whether units that have so many such weights between them, and lie over so many ranks, are
  // updated apart from the units after them. As a rule each is.
  virtual bool FillsRound(size_t weights, size_t ranks) const { return true; }
  // In place. Collective over the units' ranks.
  virtual void Update(std::span<WholeUnit> units, const UpdateOptions& options) const = 0;
};

// Where elements [first, first + count) of this rank's part of a weight lie in the whole.
std::vector<WholePart::Run> CountedRuns(const ParameterSpec& spec, int64_t first, int64_t count,
                                        int tensor_rank);

// Elements [first, first + count) of rows of `width`, as at most three rectangles: visit(first row,
// first column, this piece of `run` as (rows, columns)).
void ForRectangles(const Tensor& run, int64_t first, int64_t width,
                   const std::function<void(int64_t, int64_t, const Tensor&)>& visit);

// Reduces over the unit's ranks what each finds in its own elements. of_shard(s) is what this rank
// finds in shard s: at stage 0 every rank finds all and adds them in rank order, which gives the
// bits that the other stages' collective gives. Collective.
Tensor ReduceOverUnit(const WholeUnit& unit, ReduceOp op,
                      const std::function<Tensor(int shard)>& of_shard);

}  // namespace shoal
