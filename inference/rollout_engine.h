// Generation with the weights of a model that is being trained, as reinforcement learning needs it:
// rollouts between two steps of the trainer, on any mesh and ZeRO stage.
//
//   SHOAL_ASSIGN_OR_RETURN(auto rollouts,                                  // once
//                          RolloutEngine::Create({.model = engine.model(),
//                                                 .parameters = engine.parameters(),
//                                                 .mesh = engine.mesh()}));
//   SHOAL_RETURN_IF_ERROR(rollouts->Refresh());                            // after each update
//   std::vector<GenerationRequest> requests;   // the same on every rank, say 8 samples a prompt
//   requests.push_back({.prompt = ids, .max_new_tokens = 64,
//                       .sampling = {.temperature = 1.0, .seed = run_seed},
//                       .stream = sample_number, .eos_token_ids = eos, .want_logprobs = true});
//   SHOAL_ASSIGN_OR_RETURN(std::vector<Generation> results, rollouts->GenerateOverRanks(requests));
//   rollouts->Release();                                                   // memory back to
//   training
//
// Refresh moves the weights once (gathered_weights.h has the bytes) and checks them by hash; what
// follows moves none, whatever the number of tokens. A request's tokens depend on its own prompt,
// options, seed and stream: not on what else is asked for, on the number of ranks or on who
// generates it (generator.h says how far that goes to the last bit). Requests with equal prompts
// read the prompt once.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "core/status.h"
#include "inference/gathered_weights.h"
#include "inference/generator.h"

namespace shoal {

class RolloutEngine {
 public:
  struct Options {
    // kWhole needs room for all weights on each rank, and every rank generates apart. kTensor needs
    // a tensor_parallel-th of them, and tensor-parallel ranks generate together.
    GatheredWeights::Layout layout = GatheredWeights::Layout::kWhole;
    Generator::Options generator = {};
  };
  // Collective over source.mesh.
  static absl::StatusOr<std::unique_ptr<RolloutEngine>> Create(
      const GatheredWeights::Source& source);
  static absl::StatusOr<std::unique_ptr<RolloutEngine>> Create(
      const GatheredWeights::Source& source, const Options& options);

  // Takes over the trainer's weights as they are now. Collective over the mesh. Internal: the
  // gathered weights' hash is not that of the trainer's.
  absl::Status Refresh();
  // Frees weights and cache until the next Refresh. Not collective.
  void Release();

  // This rank's own requests, any number of them. Under kWhole not collective; under kTensor the
  // ranks of mesh.tensor() pass the same ones. Errors: Generator::Generate's; FailedPrecondition
  // before the first Refresh or after Release.
  absl::StatusOr<std::vector<Generation>> Generate(std::span<const GenerationRequest> requests);

  // The same requests on all ranks of the mesh, dealt out among them: each result on every rank, in
  // the order of the requests. Collective over the mesh; an error of one rank is returned on all.
  // `on_token` is called by the rank that generates the request (under kTensor: those ranks).
  absl::StatusOr<std::vector<Generation>> GenerateOverRanks(
      std::span<const GenerationRequest> requests);

  const GatheredWeights& weights() const { return weights_; }
  // Summed over all calls since Create, of this rank.
  const GenerationStatistics& statistics() const { return statistics_; }

 private:
  RolloutEngine(GatheredWeights weights, const DeviceMesh& mesh, const Options& options)
      : weights_(std::move(weights)), mesh_(mesh), options_(options) {}

  bool generates_together() const;

  GatheredWeights weights_;
  const DeviceMesh& mesh_;
  Options options_;
  std::unique_ptr<TensorParallel> tensor_;  // kTensor over several ranks
  std::unique_ptr<Generator> generator_;    // Between Refresh and Release
  GenerationStatistics statistics_;
};

}  // namespace shoal
