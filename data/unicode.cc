#include "data/unicode.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <vector>

namespace shoal {
namespace {

constexpr uint32_t kRuns[] = {
#include "data/unicode_table.inc"
};

// Entry c: the properties of character c.
std::vector<uint8_t> ExpandRuns() {
  std::vector<uint8_t> bits(kMaxCodePoint + 1);
  for (size_t run = 0; run < std::size(kRuns); ++run) {
    const size_t end = run + 1 < std::size(kRuns) ? kRuns[run + 1] >> 8 : bits.size();
    std::fill(bits.begin() + (kRuns[run] >> 8), bits.begin() + end,
              static_cast<uint8_t>(kRuns[run] & 255));
  }
  return bits;
}

// Lead bytes: how many bytes follow, and the range that the first of them must lie in.
struct Lead {
  int length;
  uint8_t second_min = 0x80, second_max = 0xBF;
};

Lead LeadOf(uint8_t byte) {
  if (byte < 0x80) return {1};
  if (byte < 0xC2) return {0};
  if (byte < 0xE0) return {2};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0};
}

constexpr char32_t kReplacement = 0xFFFD;

// Bytes of the longest prefix of `text` from `position` that is plain ASCII.
size_t AsciiRun(absl::string_view text, size_t position) {
  size_t end = position;
  for (; end + 8 <= text.size(); end += 8) {
    uint64_t word;
    std::memcpy(&word, text.data() + end, 8);
    if (word & 0x8080808080808080u) break;
  }
  while (end < text.size() && static_cast<uint8_t>(text[end]) < 0x80) ++end;
  return end - position;
}

}  // namespace

void ForEachRun(absl::FunctionRef<void(char32_t, char32_t, CharacterProperties)> visit) {
  for (size_t run = 0; run < std::size(kRuns); ++run) {
    const char32_t last = run + 1 < std::size(kRuns) ? (kRuns[run + 1] >> 8) - 1 : kMaxCodePoint;
    visit(kRuns[run] >> 8, last, CharacterProperties(static_cast<uint8_t>(kRuns[run] & 255)));
  }
}

CharacterProperties PropertiesOf(char32_t code_point) {
  static const std::vector<uint8_t> bits = ExpandRuns();
  return CharacterProperties(bits[code_point]);
}

DecodedCharacter DecodeUtf8(absl::string_view text, size_t position) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const Lead lead = LeadOf(byte(position));
  if (lead.length == 1) return {byte(position), 1, true};
  if (lead.length == 0) return {kReplacement, 1, false};
  char32_t code_point = byte(position) & (0x7F >> lead.length);
  for (int i = 1; i < lead.length; ++i) {
    if (position + i >= text.size()) return {kReplacement, i, false};
    const uint8_t next = byte(position + i);
    const bool fits =
        i == 1 ? next >= lead.second_min && next <= lead.second_max : (next & 0xC0) == 0x80;
    if (!fits) return {kReplacement, i, false};
    code_point = code_point << 6 | (next & 0x3F);
  }
  return {code_point, lead.length, true};
}

void AppendUtf8(char32_t c, std::string& out) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 63))};
  } else if (c < 0x10000) {
    out += {static_cast<char>(0xE0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 63)),
            static_cast<char>(0x80 | (c & 63))};
  } else {
    out += {static_cast<char>(0xF0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 63)),
            static_cast<char>(0x80 | (c >> 6 & 63)), static_cast<char>(0x80 | (c & 63))};
  }
}

bool IsValidUtf8(absl::string_view text) {
  for (size_t i = 0; i < text.size();) {
    i += AsciiRun(text, i);
    if (i == text.size()) break;
    const DecodedCharacter c = DecodeUtf8(text, i);
    if (!c.valid) return false;
    i += c.length;
  }
  return true;
}

std::string ReplaceInvalidUtf8(absl::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const size_t ascii = AsciiRun(text, i);
    out.append(text.data() + i, ascii);
    i += ascii;
    if (i == text.size()) break;
    const DecodedCharacter c = DecodeUtf8(text, i);
    if (c.valid) {
      out.append(text.data() + i, c.length);
    } else {
      AppendUtf8(kReplacement, out);
    }
    i += c.length;
  }
  return out;
}

}  // namespace shoal
