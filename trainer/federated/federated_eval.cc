#include "trainer/federated/federated_eval.h"

#include <algorithm>

#include <ATen/ATen.h>

namespace shoal {

absl::StatusOr<HeldOut> EvaluateHeldOut(Engine& engine, const ExampleSet& examples,
                                        Communicator& outer, const HeldOutOptions& options) {
  BlockRunner runner = engine.MakeRunner();
  const DeviceMesh& mesh = engine.mesh();
  const int64_t ranks = mesh.data_parallel_size(), of_batch = options.rows * ranks;
  int64_t batches = (examples.size() + of_batch - 1) / of_batch;
  if (options.max_batches > 0) batches = std::min(batches, options.max_batches);
  // A row a batch, zero where another group computes it: (loss sum, targets, hits).
  Tensor sums = at::zeros({batches, 3}, at::kDouble);
  ObjectiveMetrics metrics = runner.MakeMetrics();
  for (int64_t index = outer.rank(); index < batches; index += outer.size()) {
    std::vector<int64_t> rows;
    for (int64_t i = 0; i < options.rows; ++i) {
      const int64_t example = index * of_batch + mesh.data_parallel_rank() * options.rows + i;
      if (example < examples.size() || i == 0 || ranks > 1)
        rows.push_back(example < examples.size() ? example : -1);
    }
    SHOAL_ASSIGN_OR_RETURN(const Batch batch, examples.Read(rows));
    const double loss = runner.Loss(batch, 1.0, metrics);
    double hits = 0;
    if (options.accuracy) {
      const Activations head = runner.Head(batch, {.mode = HeadMode::kLogits});
      if (head.logits_BTV.defined())
        hits = (head.logits_BTV.argmax(-1).cpu() == batch.targets_BT).sum().item<double>();
    }
    auto* row = sums.mutable_data_ptr<double>() + index * 3;
    row[0] = SumOverRanks(engine.mesh().control(), mesh.reports_loss() ? loss : 0.0);
    row[1] = SumOverRanks(engine.mesh().data_control(), static_cast<double>(batch.num_targets));
    row[2] = SumOverRanks(engine.mesh().control(), mesh.reports_loss() ? hits : 0.0);
  }
  if (outer.size() > 1) {
    Tensor flat = sums.view({-1});
    outer.AllReduce(flat);
  }
  double total[3] = {0, 0, 0};
  for (int64_t i = 0; i < sums.numel(); ++i) total[i % 3] += sums.const_data_ptr<double>()[i];
  HeldOut held_out{.loss = total[0] / std::max(1.0, total[1]), .accuracy = std::nullopt};
  if (options.accuracy) held_out.accuracy = total[2] / std::max(1.0, total[1]);
  return held_out;
}

}  // namespace shoal
