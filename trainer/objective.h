// What training minimises, where that is not the cross entropy of every target.
//
// An objective turns what the head gave for a micro-batch (each target's log-probability, or a
// score a place, with gradient) and the tensors that the batch carries by name into a scalar. A
// training step divides it by one number for the global batch, the sum of Count() over all
// micro-batches and ranks, so that the loss does not depend on how the batch is cut. Objectives are
// pure: what needs another pass or other ranks (a reference's log-probabilities, an estimate over
// the whole batch) is put into the batch by its source.
//
//   class Mine final : public Objective {
//     HeadMode head_mode() const override { return HeadMode::kLogprobs; }
//     std::vector<std::string> metric_names() const override { return {"ratio"}; }
//     Tensor Loss(const Batch& batch, const Activations& head, ObjectiveMetrics& m) const override;
//   };
//   BlockRunner runner = engine.MakeRunner(&mine);   // then Trainer::TrainStep as ever
//
// Legend: B sequences, T tokens.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "core/batch.h"
#include "core/scalar_sum.h"
#include "models/block.h"
#include "parallel/device_mesh.h"

namespace shoal {

// Named means of a step: sums and counts, added up over micro-batches and ranks.
class ObjectiveMetrics {
 public:
  explicit ObjectiveMetrics(const std::vector<std::string>& names);

  // `name` is one of those that it was made with; `sum` and `count` are doubles or () tensors,
  // which Reduce waits for if they are a device's.
  template <class Sum, class Count>
  void Add(const std::string& name, const Sum& sum, const Count& count) {
    const size_t entry = Find(name);
    sums_[2 * entry].Add(sum);
    sums_[2 * entry + 1].Add(count);
  }

  // (name, sum over ranks / count over ranks), in the order of the names; those that counted
  // nothing are left out. Ranks for which mesh.reports_loss() does not hold add nothing. Collective
  // over the mesh: every rank makes its metrics with the same names.
  std::vector<std::pair<std::string, double>> Reduce(const DeviceMesh& mesh) const;

 private:
  size_t Find(const std::string& name) const;

  std::vector<std::string> names_;
  std::vector<ScalarSum> sums_;  // Two a name: sum and count
};

class Objective {
 public:
  virtual ~Objective() = default;

  // kLogprobs or kScores.
  virtual HeadMode head_mode() const = 0;
  // Of kLogprobs: what logits are divided by first, as in the rollout.
  virtual double temperature() const { return 1.0; }
  // What Loss adds to the metrics.
  virtual std::vector<std::string> metric_names() const { return {}; }

  // What a micro-batch adds to the global denominator: by default its targets.
  virtual double Count(const Batch& batch) const { return static_cast<double>(batch.num_targets); }

  // () with gradient: the SUM over the micro-batch; the caller divides it by the denominator. head:
  // logprobs_BT or scores_BT, by head_mode(), float32 (float64 in float64 runs). Metrics are sums
  // and counts too.
  virtual Tensor Loss(const Batch& batch, const Activations& head,
                      ObjectiveMetrics& metrics) const = 0;
};

}  // namespace shoal
