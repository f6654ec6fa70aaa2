#include "data/byte_level.h"

#include "data/unicode.h"

namespace shoal {
namespace {

bool StandsForItself(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr int kFirstOther = 0x100;
constexpr int kNumOthers = 68;

// Entry c: the byte that character c stands for, or -1.
std::array<int16_t, kFirstOther + kNumOthers> InvertAlphabet() {
  std::array<int16_t, kFirstOther + kNumOthers> bytes;
  bytes.fill(-1);
  for (int byte = 0; byte < 256; ++byte)
    bytes[ByteLevelAlphabet()[byte]] = static_cast<int16_t>(byte);
  return bytes;
}

}  // namespace

const std::array<char32_t, 256>& ByteLevelAlphabet() {
  static const std::array<char32_t, 256> alphabet = [] {
    std::array<char32_t, 256> characters;
    char32_t next = kFirstOther;
    for (int byte = 0; byte < 256; ++byte) characters[byte] = StandsForItself(byte) ? byte : next++;
    return characters;
  }();
  return alphabet;
}

std::string ToByteLevel(absl::string_view bytes) {
  std::string out;
  for (char c : bytes) AppendUtf8(ByteLevelAlphabet()[static_cast<uint8_t>(c)], out);
  return out;
}

std::optional<std::string> FromByteLevel(absl::string_view token) {
  static const auto inverse = InvertAlphabet();
  std::string out;
  for (size_t i = 0; i < token.size();) {
    const DecodedCharacter c = DecodeUtf8(token, i);
    if (!c.valid || c.code_point >= inverse.size() || inverse[c.code_point] < 0)
      return std::nullopt;
    out += static_cast<char>(inverse[c.code_point]);
    i += c.length;
  }
  return out;
}

}  // namespace shoal
