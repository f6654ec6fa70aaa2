// What a policy is asked: prompts from a file of JSON lines, in an order that is a function of the
// seed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/file_system.h"
#include "core/status.h"
#include "data/tokenizer.h"
#include "models/json.h"

namespace shoal {

struct Prompt {
  std::string text;
  std::vector<int64_t> tokens;
  std::string answer;  // What a verifier compares with; "" if the line has none
  Json line;           // The whole object, for programs that reward
};

class PromptSet {
 public:
  struct Options {
    std::string path;
    std::string prompt_field = "prompt";
    std::string answer_field = "answer";  // A string or a number
    uint64_t seed = 0;
  };
  // Errors name the file and the line: NotFound, InvalidArgument (broken JSON, no prompt, no token
  // in it), or no line at all.
  static absl::StatusOr<PromptSet> Read(FileSystem& files, const Tokenizer& tokenizer,
                                        const Options& options);

  int64_t size() const { return static_cast<int64_t>(prompts_.size()); }
  int64_t longest() const { return longest_; }  // In tokens
  const Prompt& operator[](int64_t index) const { return prompts_[index]; }

  // The prompt at place `position` of the endless order: epoch after epoch, each a permutation of
  // its own. Its number in the file.
  int64_t At(int64_t position) const;

 private:
  Options options_;
  std::vector<Prompt> prompts_;
  int64_t longest_ = 0;
};

}  // namespace shoal
