// The byte-level alphabet of GPT-2 (Radford et al. 2019): every byte has a printable character of
// its own, in which vocabularies and merges of tokenizer.json are written.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace shoal {

// Entry b: the character that stands for byte b. Printable Latin-1 stands for itself, the other 68
// bytes for U+0100, U+0101, ... in their order.
const std::array<char32_t, 256>& ByteLevelAlphabet();

// "a b" -> "aĠb".
std::string ToByteLevel(absl::string_view bytes);

// The bytes that `token` spells; nullopt if one of its characters stands for no byte or it is not
// UTF-8.
std::optional<std::string> FromByteLevel(absl::string_view token);

}  // namespace shoal
