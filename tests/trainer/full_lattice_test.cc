// Every mesh of up to 8 ranks with every stage, schedule and number of micro-batches, options in
// turn, equals one process: minutes a model. SHOAL_FULL_LATTICE=1 runs it.
#include <cstdlib>

#include <gtest/gtest.h>

#include "tests/trainer/training_job.h"

namespace shoal {
namespace {

constexpr double kTolerance = 1e-11;
constexpr int64_t kSequences = 36;  // Of a step

struct LatticeModel {
  const char* name;
  int heads;
  std::vector<int> contexts, experts;
};

class FullLattice : public testing::TestWithParam<LatticeModel> {
 protected:
  void Run(TrainingJob job) {
    job.steps = 3;
    job.layers = 6;
    // Two pieces for each rank of a context; else a number that divides over no other axis.
    job.seq_length = job.context > 1 ? 8 : 7;
    const int64_t rows = kSequences / (job.data_ranks() * job.micro_batches) * job.seq_length;
    job.sequence_parallel = rows / job.context % job.tensor == 0;
    const bool takes_turns = job.model.starts_with("llama");
    job.overlap = takes_turns && jobs_ % 2 == 1;
    job.recompute = jobs_ % 3 == 1 ? Recompute::kFull : Recompute::kNone;
    job.documents = job.context > 1 && jobs_ % 4 == 1;
    if (GetParam().heads / job.tensor % job.context == 0 && jobs_ % 5 < 3)
      job.context_method = ContextParallel::Method::kUlysses;
    if (takes_turns && jobs_ % 7 == 3) job.offload_optimizer = OffloadTo::kDisk;
    ExpectClose(RunTrainingJob(job), OnOneRank(job), kTolerance, Describe(job));
    ++jobs_;
  }

  int jobs_ = 0;
};

TEST_P(FullLattice, EqualsOneProcess) {
  if (std::getenv("SHOAL_FULL_LATTICE") == nullptr) GTEST_SKIP() << "SHOAL_FULL_LATTICE is not set";
  const LatticeModel& model = GetParam();
  // The mesh, then what runs on it.
  for (int tensor : {1, 2, 3, 4}) {
    for (int pipeline : {1, 2, 3, 4}) {
      for (int context : model.contexts) {
        for (int shard : {1, 2, 3, 4}) {
          for (int expert : model.experts) {
            for (int replicate : {1, 2}) {
              const int data_ranks = shard * replicate;
              const int ranks = tensor * pipeline * context * data_ranks;
              if (ranks > 8 || model.heads % tensor != 0 || shard % expert != 0) continue;
              for (const PipelineCase& c : kPipelines) {
                if (pipeline == 1 && c.schedule != ScheduleKind::k1F1B) continue;
                for (int stage = 0; stage <= c.highest_stage; ++stage) {
                  for (int micro_batches : {1, 3, 6}) {
                    if (kSequences % (data_ranks * micro_batches) != 0) continue;
                    Run({.model = model.name,
                         .ranks = ranks,
                         .replicate = replicate,
                         .tensor = tensor,
                         .context = context,
                         .pipeline = pipeline,
                         .expert = expert,
                         .schedule = c.schedule,
                         .chunks = c.chunks,
                         .stage = stage,
                         .micro_batches = micro_batches});
                  }
                }
              }
            }
          }
        }
      }
    }
  }
  std::printf("%d jobs of %s equal one process to %g\n", jobs_, model.name, kTolerance);
}

INSTANTIATE_TEST_SUITE_P(Models, FullLattice,
                         testing::Values(LatticeModel{"llama", 4, {1, 2, 4}, {1}},
                                         LatticeModel{"llama-tied", 4, {1, 2}, {1}},
                                         LatticeModel{"gpt2-dropout", 3, {1, 2}, {1}},
                                         LatticeModel{"mixtral", 4, {1, 2}, {1, 2, 4}}),
                         [](const auto& info) {
                           std::string name = info.param.name;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace shoal
