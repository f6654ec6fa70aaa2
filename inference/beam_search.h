// Beam search over a cached model. Reached through Generator::SearchBeams.
#pragma once

#include <vector>

#include "core/status.h"
#include "inference/generator.h"

namespace shoal {

// InvalidArgument naming what is out of range, or of no use together with beams.
absl::Status CheckBeamOptions(const GenerationRequest& request, const BeamOptions& options,
                              int64_t vocab_size);

// Checked arguments. Ids are those of transformers 5.23 where scores do not tie: it keeps, of
// max(2, 1 + eos ids) * num_beams continuations by summed log-probabilities, the num_beams best
// that go on and, among the first num_beams, those that end. Its scores are float32, as here.
absl::StatusOr<std::vector<BeamResult>> RunBeamSearch(CachedModel& cached,
                                                      const GenerationRequest& request,
                                                      const BeamOptions& options,
                                                      GenerationStatistics& statistics);

}  // namespace shoal
