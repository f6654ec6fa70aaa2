// A trained reward model as a reward.
#pragma once

#include <memory>
#include <string>

#include "data/tokenizer.h"
#include "trainer/rlhf/rewards.h"

namespace shoal {

// The score of `path`, a folder that `task: reward` exports (Hugging Face's sequence classification
// with one label), at an answer's last token, the prompt before it. It is asked on `device`.
// `tokenizer` is the policy's: FailedPrecondition if the folder's is another. Other errors are
// those of reading the folder.
absl::StatusOr<std::unique_ptr<Reward>> MakeModelReward(FileSystem& files, const std::string& path,
                                                        const Tokenizer& tokenizer,
                                                        at::Device device);

}  // namespace shoal
