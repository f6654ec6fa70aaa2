// Whole-number arithmetic in text: what "12+34=" asks for.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/strings/string_view.h"

namespace shoal {

// The value of the last expression of `text` (digits, + - * and parentheses, spaces between them,
// with or without a closing "="): 46 of "What is 12 + 34 ="; nullopt if there is none, or it does
// not fit 64 bits.
std::optional<int64_t> EvaluateArithmetic(absl::string_view text);

}  // namespace shoal
