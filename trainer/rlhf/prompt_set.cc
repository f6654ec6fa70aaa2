#include "trainer/rlhf/prompt_set.h"

#include <algorithm>

#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "core/random.h"
#include "data/sequence_sampler.h"

namespace shoal {
namespace {

constexpr int64_t kMaxFileBytes = int64_t{1} << 30;

absl::StatusOr<Prompt> ReadLine(const std::string& text, const std::string& place,
                                const Tokenizer& tokenizer, const PromptSet::Options& options) {
  SHOAL_ASSIGN_OR_RETURN(Json line, ParseJson(text, place));
  const Json* prompt = line.is_object() ? FindGiven(line, options.prompt_field) : nullptr;
  if (prompt == nullptr || !prompt->is_string()) {
    return absl::InvalidArgumentError(absl::StrCat(place, ": expected an object with the text \"",
                                                   options.prompt_field, "\", got ",
                                                   ShowJson(line)));
  }
  Prompt read{.text = prompt->get<std::string>(), .tokens = {}, .answer = {}, .line = {}};
  if (const Json* answer = FindGiven(line, options.answer_field)) {
    if (!answer->is_string() && !answer->is_number()) {
      return absl::InvalidArgumentError(absl::StrCat(place, ": \"", options.answer_field, "\" is ",
                                                     ShowJson(*answer),
                                                     ", expected text or a number"));
    }
    read.answer = answer->is_string() ? answer->get<std::string>() : answer->dump();
  }
  SHOAL_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer.Encode(read.text));
  read.tokens.assign(ids.begin(), ids.end());
  if (ids.empty())
    return absl::InvalidArgumentError(absl::StrCat(place, ": the prompt holds no token"));
  read.line = std::move(line);
  return read;
}

}  // namespace

absl::StatusOr<PromptSet> PromptSet::Read(FileSystem& files, const Tokenizer& tokenizer,
                                          const Options& options) {
  SHOAL_ASSIGN_OR_RETURN(const std::string text, ReadFile(files, options.path, kMaxFileBytes));
  PromptSet set;
  set.options_ = options;
  int64_t number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    SHOAL_ASSIGN_OR_RETURN(
        Prompt prompt,
        ReadLine(std::string(line), absl::StrCat(options.path, ":", number), tokenizer, options));
    set.longest_ = std::max<int64_t>(set.longest_, prompt.tokens.size());
    set.prompts_.push_back(std::move(prompt));
  }
  if (set.prompts_.empty())
    return absl::InvalidArgumentError(absl::StrCat(options.path, ": no prompt in it"));
  return set;
}

int64_t PromptSet::At(int64_t position) const {
  return ShufflePermutation(options_.seed ^ StreamId("prompts"), position / size(),
                            size())(position % size());
}

}  // namespace shoal
