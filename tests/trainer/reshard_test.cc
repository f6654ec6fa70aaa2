// A checkpoint written on any mesh is read on any other, to the last bit, and training goes on
// alike.
#include <gtest/gtest.h>

#include "tests/trainer/saved_job.h"

namespace shoal {
namespace {

TEST(Reshard, EveryLayoutReadsEveryOther) {
  for (const char* model : {"llama-tied", "llama-uneven", "gpt2"}) {
    const int tensor = std::string(model) == "gpt2" ? 3 : 2;
    const std::vector<TrainingJob> layouts = {
        {.model = model, .steps = 2},
        {.model = model, .ranks = 3, .stage = 3, .steps = 2},
        {.model = model, .ranks = 4, .replicate = 2, .stage = 2, .steps = 2},
        {.model = model, .ranks = tensor, .tensor = tensor, .stage = 0, .steps = 2},
        {.model = model, .ranks = 2 * tensor, .tensor = tensor, .stage = 3, .steps = 2},
        {.model = model, .ranks = 2, .pipeline = 2, .stage = 1, .steps = 2},
        {.model = model,
         .ranks = 4,
         .pipeline = 2,
         .schedule = ScheduleKind::kZbV,
         .chunks = 2,
         .stage = 1,
         .steps = 2},
        {.model = model,
         .ranks = 4 * tensor,
         .tensor = tensor,
         .pipeline = 2,
         .stage = 3,
         .steps = 2},
    };
    ExpectEachReadsAll(layouts);
  }
}

TEST(Reshard, ExpertsOverRanks) {
  const char* model = "mixtral";
  ExpectEachReadsAll({
      {.model = model, .steps = 2},
      {.model = model, .ranks = 3, .stage = 3, .steps = 2},
      {.model = model, .ranks = 4, .expert = 4, .stage = 2, .steps = 2},
      {.model = model, .ranks = 4, .expert = 2, .stage = 0, .steps = 2},
      {.model = model, .ranks = 4, .expert = 2, .stage = 3, .steps = 2},
      {.model = model, .ranks = 4, .tensor = 2, .expert = 2, .stage = 1, .steps = 2},
      {.model = model, .ranks = 4, .pipeline = 2, .expert = 2, .stage = 3, .steps = 2},
  });
}

TEST(Reshard, RouterBiases) {
  const char* model = "dots1";
  ExpectEachReadsAll({
      {.model = model, .steps = 2, .router_bias_rate = 0.01},
      {.model = model, .ranks = 4, .expert = 2, .stage = 3, .steps = 2, .router_bias_rate = 0.01},
      {.model = model, .ranks = 4, .tensor = 2, .stage = 1, .steps = 2, .router_bias_rate = 0.01},
      {.model = model, .ranks = 4, .pipeline = 2, .stage = 2, .steps = 2, .router_bias_rate = 0.01},
  });
}

}  // namespace
}  // namespace shoal
