#include "data/added_tokens.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "data/unicode.h"

namespace shoal {
namespace {

// The character that ends before text[end]; end > 0, valid UTF-8.
DecodedCharacter CharacterBefore(absl::string_view text, size_t end) {
  size_t begin = end - 1;
  while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
  return DecodeUtf8(text, begin);
}

bool IsWord(const DecodedCharacter& c) {
  return PropertiesOf(c.code_point).word() || c.code_point == 0x200C || c.code_point == 0x200D;
}

bool InsideWord(absl::string_view text, size_t begin, size_t end) {
  return (begin > 0 && IsWord(CharacterBefore(text, begin))) ||
         (end < text.size() && IsWord(DecodeUtf8(text, end)));
}

size_t SkipSpacesLeft(absl::string_view text, size_t end) {
  while (end > 0) {
    const DecodedCharacter c = CharacterBefore(text, end);
    if (!PropertiesOf(c.code_point).space()) break;
    end -= c.length;
  }
  return end;
}

size_t SkipSpacesRight(absl::string_view text, size_t begin) {
  while (begin < text.size()) {
    const DecodedCharacter c = DecodeUtf8(text, begin);
    if (!PropertiesOf(c.code_point).space()) break;
    begin += c.length;
  }
  return begin;
}

}  // namespace

absl::Status AddedTokenMatcher::Add(const std::string& pattern, const AddedToken& token) {
  if (pattern.empty()) return absl::InvalidArgumentError("added_tokens: a token without content");
  uint32_t node = 0;
  for (char c : pattern) {
    const uint64_t edge = static_cast<uint64_t>(node) << 8 | static_cast<uint8_t>(c);
    const auto [it, inserted] =
        edges_.try_emplace(edge, static_cast<uint32_t>(node_tokens_.size()));
    if (inserted) node_tokens_.push_back(-1);
    node = it->second;
  }
  if (node_tokens_[node] >= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("added_tokens: \"", pattern, "\" is there twice"));
  }
  node_tokens_[node] = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
  starts_[static_cast<uint8_t>(pattern[0])] = true;
  return absl::OkStatus();
}

AddedTokenMatcher::Match AddedTokenMatcher::LongestAt(absl::string_view text,
                                                      size_t position) const {
  Match best;
  uint32_t node = 0;
  for (size_t i = position; i < text.size(); ++i) {
    const auto it = edges_.find(static_cast<uint64_t>(node) << 8 | static_cast<uint8_t>(text[i]));
    if (it == edges_.end()) break;
    node = it->second;
    if (node_tokens_[node] >= 0) best = {i + 1 - position, &tokens_[node_tokens_[node]]};
  }
  return best;
}

void AddedTokenMatcher::Split(absl::string_view text, std::vector<Segment>& out) const {
  size_t done = 0;  // Text before it is in `out`
  for (size_t i = 0; !tokens_.empty() && i < text.size();) {
    if (!starts_[static_cast<uint8_t>(text[i])]) {
      ++i;
      continue;
    }
    const Match match = LongestAt(text, i);
    if (match.token == nullptr) {
      ++i;
      continue;
    }
    size_t begin = i, end = i + match.length;
    i = end;
    if (match.token->single_word && InsideWord(text, begin, end)) continue;
    // Spaces that the token before has taken stay its own.
    if (match.token->lstrip) begin = std::max(SkipSpacesLeft(text, begin), done);
    if (match.token->rstrip) end = SkipSpacesRight(text, end);
    if (done < begin) out.push_back({text.substr(done, begin - done), std::nullopt});
    out.push_back({text.substr(begin, end > begin ? end - begin : 0), match.token->id});
    done = end;
  }
  if (done < text.size()) out.push_back({text.substr(done), std::nullopt});
}

}  // namespace shoal
