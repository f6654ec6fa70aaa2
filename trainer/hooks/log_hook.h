// Writes a row of metrics every few steps.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/metrics.h"
#include "trainer/trainer.h"

namespace shoal {

class LogHook final : public Hook {
 public:
  struct Options {
    int64_t every_steps = 1;
    // Of a forward and backward pass, per token: model_flops.h.
    double train_flops_per_token = 0;
    at::ScalarType compute_dtype = at::kFloat;
    int threads_per_rank = 1;
    at::Device device = at::kCPU;  // That it computes on
  };

  // `sinks` is empty on ranks other than 0. The mesh outlives the hook.
  LogHook(const Options& options, DeviceMesh& mesh, std::vector<std::unique_ptr<MetricsSink>> sinks)
      : options_(options), mesh_(mesh), sinks_(std::move(sinks)) {}

  absl::Status AfterStep(const Trainer& trainer, const StepMetrics& metrics) override;

  DeviceMesh& mesh() { return mesh_; }
  // A row of another hook's, to the same sinks.
  absl::Status Write(const MetricsRow& row);
  // What is added to each row of a step, under names of its own.
  using Figures = std::vector<std::pair<std::string, double>>;
  void set_more(std::function<Figures()> more) { more_ = std::move(more); }
  // FLOP/s of large products on this rank's threads, or its device. Measured once, when it is first
  // asked for; every rank asks at the same time.
  double MatrixPeak();
  // The last call.
  absl::Status Close();

 private:
  // Share of the machine's matrix peak that the model's own products use:
  //   mfu = train_flops_per_token * tokens_per_second / (ranks * measured peak of a rank)
  // Asked for after the first logged step, outside of any step's time.
  double ModelFlopsUtilization(double tokens_per_second);

  Options options_;
  std::function<Figures()> more_;  // May be empty
  DeviceMesh& mesh_;
  std::vector<std::unique_ptr<MetricsSink>> sinks_;
  double matrix_peak_flops_ = 0;  // Of one rank; 0: not measured yet
  // Since the last row:
  int64_t steps_ = 0;
  int64_t tokens_ = 0;
  int64_t peak_tensor_bytes_ = 0;
  double seconds_ = 0;
};

}  // namespace shoal
