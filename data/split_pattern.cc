#define PCRE2_CODE_UNIT_WIDTH 8
#include "data/split_pattern.h"

#include <pcre2.h>

#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status.h"
#include "data/regex_translation.h"
#include "data/unicode.h"
#include "data/word_scanner.h"

namespace shoal {

const char kGpt2Pattern[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

namespace {

constexpr char kLlama3Pattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kQwen2Pattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

template <typename Scan>
class ScannerPattern : public SplitPattern {
 public:
  explicit ScannerPattern(Scan scan) : scan_(scan) {}
  absl::Status FindAll(absl::string_view text, std::vector<Span>& matches) const override {
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = scan_(text, begin);
      matches.push_back({begin, end});
      begin = end;
    }
    return absl::OkStatus();
  }
  bool covers_all() const override { return true; }

 private:
  Scan scan_;
};

template <typename Scan>
std::unique_ptr<SplitPattern> MakeScanner(Scan scan) {
  return std::make_unique<ScannerPattern<Scan>>(scan);
}

class Literal : public SplitPattern {
 public:
  explicit Literal(std::string literal) : literal_(std::move(literal)) {}
  absl::Status FindAll(absl::string_view text, std::vector<Span>& matches) const override {
    for (size_t at = text.find(literal_); at != absl::string_view::npos;
         at = text.find(literal_, at + literal_.size())) {
      matches.push_back({at, at + literal_.size()});
    }
    return absl::OkStatus();
  }

 private:
  std::string literal_;
};

// Rust's char::is_numeric, which Digits asks, is of Unicode 17.
bool IsNumeric(char32_t c) {
  return PropertiesOf(c).number() || (c >= 0x11DE0 && c <= 0x11DE9) ||
         (c >= 0x16FF4 && c <= 0x16FF6);
}

class Numbers : public SplitPattern {
 public:
  absl::Status FindAll(absl::string_view text, std::vector<Span>& matches) const override {
    for (size_t begin = 0; begin < text.size();) {
      const DecodedCharacter c = DecodeUtf8(text, begin);
      if (IsNumeric(c.code_point)) matches.push_back({begin, begin + c.length});
      begin += c.length;
    }
    return absl::OkStatus();
  }
};

struct Pcre2Deleter {
  void operator()(pcre2_code* p) const { pcre2_code_free(p); }
  void operator()(pcre2_compile_context* p) const { pcre2_compile_context_free(p); }
  void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
};
template <typename T>
using Pcre2Ptr = std::unique_ptr<T, Pcre2Deleter>;

std::string Pcre2Message(int code) {
  PCRE2_UCHAR text[256] = {0};
  pcre2_get_error_message(code, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

class Pcre2Pattern : public SplitPattern {
 public:
  static absl::StatusOr<std::unique_ptr<SplitPattern>> Compile(absl::string_view oniguruma) {
    SHOAL_ASSIGN_OR_RETURN(const std::string translated, TranslateRegex(oniguruma));
    Pcre2Ptr<pcre2_compile_context> context(pcre2_compile_context_create(nullptr));
    pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
    int error = 0;
    PCRE2_SIZE offset = 0;
    auto pattern = std::make_unique<Pcre2Pattern>();
    pattern->code_.reset(pcre2_compile(
        reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
        PCRE2_UTF | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &offset, context.get()));
    if (pattern->code_ == nullptr) return absl::InvalidArgumentError(Pcre2Message(error));
    pcre2_jit_compile(pattern->code_.get(),
                      PCRE2_JIT_COMPLETE);  // Without it matching is slower, not wrong
    pattern->limits_.reset(pcre2_match_context_create(nullptr));
    pcre2_set_match_limit(pattern->limits_.get(), kMatchLimit);
    pcre2_set_heap_limit(pattern->limits_.get(), kHeapLimitKib);
    return pattern;
  }

  absl::Status FindAll(absl::string_view text, std::vector<Span>& matches) const override {
    Pcre2Ptr<pcre2_match_data> data(pcre2_match_data_create(1, nullptr));
    size_t position = 0;
    size_t last_end = std::string::npos;
    while (position <= text.size()) {
      SHOAL_ASSIGN_OR_RETURN(const bool found, Match(text, position, data.get()));
      if (!found) break;
      const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data.get());
      const Span match{ends[0], ends[1]};
      if (match.begin < match.end) {
        matches.push_back(match);
        position = match.end;
      } else {  // An empty match advances by a character, and counts unless it touches the match
                // before
        if (match.end != last_end) matches.push_back(match);
        if (match.end >= text.size()) break;
        position = match.end + DecodeUtf8(text, match.end).length;
      }
      last_end = match.end;
    }
    return absl::OkStatus();
  }

 private:
  static constexpr uint32_t kMatchLimit = 10'000'000;
  static constexpr uint32_t kHeapLimitKib = 256 * 1024;

  absl::StatusOr<bool> Match(absl::string_view text, size_t position,
                             pcre2_match_data* data) const {
    const auto match = [&](uint32_t options) {
      return pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                         position, options | PCRE2_NO_UTF_CHECK, data, limits_.get());
    };
    int result = match(0);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT)
      result = match(PCRE2_NO_JIT);  // Its stack is the heap
    if (result == PCRE2_ERROR_NOMATCH) return false;
    if (result < 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the tokenizer's split pattern gave up at byte ", position, " of a text of ",
                       text.size(), " bytes: ", Pcre2Message(result)));
    }
    return true;
  }

  Pcre2Ptr<pcre2_code> code_;
  Pcre2Ptr<pcre2_match_context> limits_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<SplitPattern>> CompilePattern(absl::string_view oniguruma) {
  if (oniguruma == kGpt2Pattern) return MakeScanner(&ScanGpt2);
  if (oniguruma == kLlama3Pattern) {
    return MakeScanner(
        [](absl::string_view text, size_t begin) { return ScanLlama3(text, begin, 3); });
  }
  if (oniguruma == kQwen2Pattern) {
    return MakeScanner(
        [](absl::string_view text, size_t begin) { return ScanLlama3(text, begin, 1); });
  }
  return Pcre2Pattern::Compile(oniguruma);
}

std::unique_ptr<SplitPattern> LiteralPattern(std::string literal) {
  return std::make_unique<Literal>(std::move(literal));
}

std::unique_ptr<SplitPattern> NumberPattern() { return std::make_unique<Numbers>(); }

}  // namespace shoal
