#include "trainer/rlhf/arithmetic.h"

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"

namespace shoal {
namespace {

// sum = product {("+" | "-") product}; product = factor {"*" factor};
// factor = number | "-" factor | "(" sum ")".
class Parser {
 public:
  explicit Parser(absl::string_view text) : text_(text) {}

  std::optional<int64_t> Whole() {
    const std::optional<int64_t> value = Sum();
    Skip();
    return text_.empty() ? value : std::nullopt;
  }

 private:
  static constexpr int kMostLevels = 64;

  void Skip() { text_ = absl::StripLeadingAsciiWhitespace(text_); }
  bool Take(char c) {
    Skip();
    return absl::ConsumePrefix(&text_, absl::string_view(&c, 1));
  }

  std::optional<int64_t> Sum() {
    std::optional<int64_t> value = Product();
    while (value) {
      const bool plus = Take('+');
      if (!plus && !Take('-')) break;
      const std::optional<int64_t> next = Product();
      int64_t result;
      if (!next || (plus ? __builtin_add_overflow(*value, *next, &result)
                         : __builtin_sub_overflow(*value, *next, &result)))
        return std::nullopt;
      value = result;
    }
    return value;
  }

  std::optional<int64_t> Product() {
    std::optional<int64_t> value = Factor();
    while (value && Take('*')) {
      const std::optional<int64_t> next = Factor();
      int64_t result;
      if (!next || __builtin_mul_overflow(*value, *next, &result)) return std::nullopt;
      value = result;
    }
    return value;
  }

  std::optional<int64_t> Factor() {
    if (++levels_ > kMostLevels) return std::nullopt;
    const std::optional<int64_t> value = Unguarded();
    --levels_;
    return value;
  }

  std::optional<int64_t> Unguarded() {
    if (Take('-')) {
      const std::optional<int64_t> value = Factor();
      int64_t result;
      if (!value || __builtin_sub_overflow(int64_t{0}, *value, &result)) return std::nullopt;
      return result;
    }
    if (Take('(')) {
      const std::optional<int64_t> value = Sum();
      return value && Take(')') ? value : std::nullopt;
    }
    Skip();
    size_t digits = 0;
    while (digits < text_.size() && absl::ascii_isdigit(text_[digits])) ++digits;
    int64_t value;
    if (!absl::SimpleAtoi(text_.substr(0, digits), &value)) return std::nullopt;
    text_.remove_prefix(digits);
    return value;
  }

  absl::string_view text_;
  int levels_ = 0;
};

}  // namespace

std::optional<int64_t> EvaluateArithmetic(absl::string_view text) {
  text = absl::StripTrailingAsciiWhitespace(text);
  absl::ConsumeSuffix(&text, "=");
  size_t begin = text.size();
  while (begin > 0 &&
         (absl::ascii_isdigit(text[begin - 1]) || absl::ascii_isspace(text[begin - 1]) ||
          absl::string_view("+-*()").find(text[begin - 1]) != absl::string_view::npos))
    --begin;
  return Parser(text.substr(begin)).Whole();
}

}  // namespace shoal
