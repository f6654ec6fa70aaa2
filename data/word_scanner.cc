#include "data/word_scanner.h"

#include <array>
#include <cstdint>

#include "data/unicode.h"

namespace shoal {
namespace {

enum Kind : uint8_t { kLetter, kNumber, kSpace, kOther };

Kind KindOf(CharacterProperties c) {
  if (c.letter()) return kLetter;
  if (c.number()) return kNumber;
  return c.space() ? kSpace : kOther;
}

constexpr std::array<uint8_t, 128> kAsciiKinds = [] {
  std::array<uint8_t, 128> kinds{};
  for (int c = 0; c < 128; ++c) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    const bool space = c == ' ' || (c >= '\t' && c <= '\r');
    kinds[c] = letter ? kLetter : c >= '0' && c <= '9' ? kNumber : space ? kSpace : kOther;
  }
  return kinds;
}();

struct Character {
  Kind kind;
  int length;
};

Character CharacterAt(absl::string_view text, size_t position) {
  const uint8_t byte = static_cast<uint8_t>(text[position]);
  if (byte < 128) return {static_cast<Kind>(kAsciiKinds[byte]), 1};
  const DecodedCharacter c = DecodeUtf8(text, position);
  return {KindOf(PropertiesOf(c.code_point)), c.length};
}

// The end of the run of `kind` that starts at `position`.
size_t SkipRun(absl::string_view text, size_t position, Kind kind) {
  while (position < text.size()) {
    const Character c = CharacterAt(text, position);
    if (c.kind != kind) break;
    position += c.length;
  }
  return position;
}

bool IsNewline(char c) { return c == '\r' || c == '\n'; }

// \s+(?!\S)|\s+ : a run of spaces leaves its last one to the word that follows.
size_t ScanSpaces(absl::string_view text, size_t begin) {
  size_t end = begin, last = begin;
  while (end < text.size()) {
    const Character c = CharacterAt(text, end);
    if (c.kind != kSpace) break;
    last = end;
    end += c.length;
  }
  return end == text.size() || last == begin ? end : last;
}

// The length of 's, 't, 're, 've, 'm, 'll or 'd at `begin`, where the apostrophe stands; 0: none of
// them.
size_t ContractionLength(absl::string_view text, size_t begin, bool ignore_case) {
  const auto letter = [&](size_t i) -> char {
    if (i >= text.size()) return '\0';
    return ignore_case && text[i] >= 'A' && text[i] <= 'Z' ? static_cast<char>(text[i] + 32)
                                                           : text[i];
  };
  const char a = letter(begin + 1), b = letter(begin + 2);
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
  if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return 3;
  if (ignore_case && text.substr(begin + 1, 2) == "\xC5\xBF") return 3;  // ſ, which folds to s
  return 0;
}

}  // namespace

size_t ScanGpt2(absl::string_view text, size_t begin) {
  if (text[begin] == '\'') {
    if (const size_t length = ContractionLength(text, begin, /*ignore_case=*/false))
      return begin + length;
  }
  const size_t word = begin + (text[begin] == ' ');
  if (word == text.size()) return word;
  const Character c = CharacterAt(text, word);
  if (c.kind == kSpace) return ScanSpaces(text, begin);
  return SkipRun(text, word + c.length, c.kind);
}

size_t ScanLlama3(absl::string_view text, size_t begin, int max_digits) {
  if (text[begin] == '\'') {
    if (const size_t length = ContractionLength(text, begin, /*ignore_case=*/true))
      return begin + length;
  }
  const Character first = CharacterAt(text, begin);
  size_t end = begin + first.length;
  if (first.kind == kLetter) return SkipRun(text, end, kLetter);
  if (first.kind == kNumber) {
    for (int digits = 1; digits < max_digits && end < text.size(); ++digits) {
      const Character c = CharacterAt(text, end);
      if (c.kind != kNumber) break;
      end += c.length;
    }
    return end;
  }
  if (!IsNewline(text[begin]) && end < text.size() && CharacterAt(text, end).kind == kLetter) {
    return SkipRun(text, end, kLetter);
  }
  const bool space_then_other =
      text[begin] == ' ' && end < text.size() && CharacterAt(text, end).kind == kOther;
  if (first.kind == kOther || space_then_other) {
    end = SkipRun(text, end, kOther);
    while (end < text.size() && IsNewline(text[end])) ++end;
    return end;
  }
  // \s*[\r\n]+ : a run of spaces up to its last line break.
  const size_t run_end = SkipRun(text, begin, kSpace);
  for (size_t i = run_end; i > begin; --i) {
    if (IsNewline(text[i - 1])) return i;
  }
  return ScanSpaces(text, begin);
}

}  // namespace shoal
