// UTF-8 and the Unicode properties that byte-level tokenizers split by. The tables are Unicode 16,
// as in Python's `tokenizers`, so that ids agree on characters newer than Debian's PCRE2 and ICU.
#pragma once

#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/strings/string_view.h"

namespace shoal {

// In the order of data/unicode_table.inc.
enum class Category : uint8_t {
  kLu,
  kLl,
  kLt,
  kLm,
  kLo,
  kMn,
  kMc,
  kMe,
  kNd,
  kNl,
  kNo,
  kPc,
  kPd,
  kPs,
  kPe,
  kPi,
  kPf,
  kPo,
  kSm,
  kSc,
  kSk,
  kSo,
  kZs,
  kZl,
  kZp,
  kCc,
  kCf,
  kCo,
  kCn
};

// Properties of a code point, one byte.
class CharacterProperties {
 public:
  constexpr explicit CharacterProperties(uint8_t bits) : bits_(bits) {}
  Category category() const { return static_cast<Category>(bits_ & 31); }
  bool letter() const { return (bits_ & 31) <= static_cast<uint8_t>(Category::kLo); }
  bool number() const { return category() >= Category::kNd && category() <= Category::kNo; }
  bool word() const { return bits_ & 32; }   // Regular expressions' \w
  bool space() const { return bits_ & 64; }  // and \s

 private:
  uint8_t bits_;
};

constexpr char32_t kMaxCodePoint = 0x10FFFF;

// Calls `visit(first, last, properties)` for each run of characters with the same properties, in
// order, without gaps.
void ForEachRun(absl::FunctionRef<void(char32_t, char32_t, CharacterProperties)> visit);

// `code_point` <= kMaxCodePoint.
CharacterProperties PropertiesOf(char32_t code_point);

struct DecodedCharacter {
  char32_t code_point;  // U+FFFD if the bytes are not UTF-8
  int length;  // Bytes read, at least 1: of invalid UTF-8 its maximal subpart (Unicode 16, 3.9)
  bool valid;
};

// The character that starts at text[position]; position < text.size().
DecodedCharacter DecodeUtf8(absl::string_view text, size_t position);

void AppendUtf8(char32_t code_point, std::string& out);

bool IsValidUtf8(absl::string_view text);

// Each maximal invalid subpart becomes one U+FFFD, as Python's bytes.decode(errors="replace") does.
std::string ReplaceInvalidUtf8(absl::string_view text);

}  // namespace shoal
