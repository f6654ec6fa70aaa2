#include "data/regex_translation.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "core/status.h"
#include "data/code_point_set.h"

namespace shoal {
namespace {

constexpr size_t kMaxPatternBytes = 16384;
constexpr int kMaxNesting = 64;

CodePointSet Spaces() {
  return CodePointSet::Of([](CharacterProperties c) { return c.space(); });
}
CodePointSet WordCharacters() {
  return CodePointSet::Of([](CharacterProperties c) { return c.word(); });
}
CodePointSet Digits() {
  return CodePointSet::Of([](CharacterProperties c) { return c.category() == Category::kNd; });
}
CodePointSet HexDigits() {
  CodePointSet set;
  set.Add('0', '9');
  set.Add('a', 'f');
  set.Add('A', 'F');
  return set;
}

// Letter pairs that one character folds to (ß to ss, ﬁ to fi): Oniguruma matches it without regard
// to case, PCRE2 does not.
bool HasMultiCharacterFold(absl::string_view literals) {
  for (absl::string_view pair : {"ss", "ff", "fi", "fl", "st"}) {
    if (absl::AsciiStrToLower(literals).find(std::string(pair)) != std::string::npos) return true;
  }
  return false;
}

class Translator {
 public:
  explicit Translator(absl::string_view in) : in_(in) {}

  absl::StatusOr<std::string> Run() {
    if (in_.size() > kMaxPatternBytes) return Error("the pattern is longer than 16384 bytes");
    if (!IsValidUtf8(in_)) return Error("the pattern is not UTF-8");
    while (!AtEnd()) SHOAL_RETURN_IF_ERROR(Item());
    if (!groups_.empty()) return Error("a group is not closed");
    return out_;
  }

 private:
  struct Group {
    size_t out_begin;  // Where its "(" stands in out_
    bool ignores_case;
  };
  // An escape is a set, or text that stands for one character or one assertion.
  struct Escape {
    std::optional<CodePointSet> set;
    std::optional<char32_t> character;
    std::string assertion;
  };

  bool AtEnd() const { return position_ >= in_.size(); }
  char Peek(size_t ahead = 0) const {
    return position_ + ahead < in_.size() ? in_[position_ + ahead] : '\0';
  }
  bool Eat(absl::string_view text) {
    if (in_.substr(std::min(position_, in_.size()), text.size()) != text) return false;
    position_ += text.size();
    return true;
  }
  absl::Status Error(absl::string_view what) const {
    return absl::InvalidArgumentError(
        absl::StrCat("at byte ", position_, " of the pattern: ", what));
  }
  char32_t NextCharacter() {
    const DecodedCharacter c = DecodeUtf8(in_, position_);
    position_ += c.length;
    return c.code_point;
  }

  void BeginAtom() {
    atom_ = out_.size();
    quantified_ = false;
  }
  void EmitCharacter(char32_t c) {
    absl::StrAppend(&out_, "\\x{", absl::Hex(static_cast<uint32_t>(c)), "}");
  }
  void EmitSet(const CodePointSet& set, bool negated = false) {
    if (set.empty()) {
      absl::StrAppend(&out_, negated ? "[\\x{0}-\\x{10ffff}]" : "(?!)");
    } else {
      absl::StrAppend(&out_, negated ? "[^" : "[", set.ToPcre2(), "]");
    }
  }

  // One alternation bar, group border, assertion or atom with its quantifier.
  absl::Status Item() {
    const char c = Peek();
    if (c != ')' && c != '(' && c != '?' && c != '*' && c != '+' && c != '{') BeginAtom();
    if (!(absl::ascii_isalnum(c) || static_cast<unsigned char>(c) >= 0x80)) literals_.clear();
    switch (c) {
      case '(':
        return OpenGroup();
      case ')':
        return CloseGroup();
      case '|':
      case '^':
      case '$':
      case '.':
        if (c != '.') atom_.reset();
        out_ += c;
        ++position_;
        return absl::OkStatus();
      case '?':
      case '*':
      case '+':
        return Quantifier();
      case '{':
        return Interval();
      case '[': {
        ++position_;
        bool negated = false;
        SHOAL_ASSIGN_OR_RETURN(const CodePointSet set, Class(0, negated));
        EmitSet(set, negated);
        return absl::OkStatus();
      }
      case '\\': {
        SHOAL_ASSIGN_OR_RETURN(const Escape escape, ReadEscape());
        if (escape.set) EmitSet(*escape.set);
        if (escape.character) EmitCharacter(*escape.character);
        if (!escape.assertion.empty()) {
          atom_.reset();
          out_ += escape.assertion;
        }
        return absl::OkStatus();
      }
      default:
        return Literal();
    }
  }

  absl::Status Literal() {
    const size_t begin = position_;
    EmitCharacter(NextCharacter());
    literals_.append(in_.data() + begin, position_ - begin);
    if (ignores_case_ && HasMultiCharacterFold(literals_)) {
      return Error(
          "(?i) with letters that one character folds to (such as ss, which ß is) is not "
          "supported");
    }
    return absl::OkStatus();
  }

  absl::Status OpenGroup() {
    if (groups_.size() >= kMaxNesting) return Error("groups are nested deeper than 64");
    groups_.push_back({out_.size(), ignores_case_});
    for (absl::string_view opening : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>"}) {
      if (Eat(opening)) {
        absl::StrAppend(&out_, opening);
        return Opened();
      }
    }
    if (Eat("(?i:")) {
      ignores_case_ = true;
      absl::StrAppend(&out_, "(?i:");
      return Opened();
    }
    if (position_ == 0 && Eat("(?i)")) {  // Of the whole pattern
      groups_.pop_back();
      ignores_case_ = true;
      absl::StrAppend(&out_, "(?i)");
      atom_.reset();
      return absl::OkStatus();
    }
    if (Peek(1) == '?') return Error("this kind of group is not supported");
    ++position_;
    absl::StrAppend(&out_, "(?:");  // Nothing refers back to groups
    return Opened();
  }

  absl::Status Opened() {
    atom_.reset();
    literals_.clear();
    return absl::OkStatus();
  }

  absl::Status CloseGroup() {
    if (groups_.empty()) return Error("a ) without its (");
    atom_ = groups_.back().out_begin;
    quantified_ = false;
    ignores_case_ = groups_.back().ignores_case;
    groups_.pop_back();
    ++position_;
    out_ += ')';
    return absl::OkStatus();
  }

  absl::Status CheckQuantifiable() const {
    if (!atom_) return Error("a quantifier with nothing before it");
    if (quantified_) return Error("a quantifier after a quantifier is not supported");
    return absl::OkStatus();
  }

  // ?, *, +, followed by ? (lazy) or + (possessive): the same in both.
  absl::Status Quantifier() {
    SHOAL_RETURN_IF_ERROR(CheckQuantifiable());
    out_ += in_[position_++];
    if (Peek() == '?' || Peek() == '+') out_ += in_[position_++];
    quantified_ = true;
    return absl::OkStatus();
  }

  // {n}, {n,}, {n,m}, {,m}; other braces are literal.
  absl::Status Interval() {
    const size_t close = in_.find('}', position_);
    const absl::string_view inside =
        close == absl::string_view::npos ? "" : in_.substr(position_ + 1, close - position_ - 1);
    const size_t comma = inside.find(',');
    const bool numbers = !inside.empty() && inside != "," &&
                         inside.find_first_not_of("0123456789,") == absl::string_view::npos &&
                         comma == inside.rfind(',');
    if (!numbers) {
      BeginAtom();
      return Literal();
    }
    SHOAL_RETURN_IF_ERROR(CheckQuantifiable());
    position_ = close + 1;
    const bool repeats = Peek() == '+';
    if (Peek() == '?' && comma == absl::string_view::npos) return Error("{n}? is not supported");
    out_ += '{';
    if (comma == 0) out_ += '0';
    absl::StrAppend(&out_, inside, "}");
    quantified_ = true;
    if (Peek() == '?') {
      out_ += in_[position_++];
    } else if (repeats) {  // Not possessive: {1,3}+ is ({1,3})+
      ++position_;
      out_.insert(*atom_, "(?:");
      absl::StrAppend(&out_, ")+");
    }
    return absl::OkStatus();
  }

  // What follows "[" up to its "]". A leading ^ sets `negated` where the caller can write it (case
  // folding then comes before the negation), else the set is complemented here.
  absl::StatusOr<CodePointSet> Class(int depth, bool& negated) {
    if (depth > kMaxNesting) return Error("classes are nested deeper than 64");
    negated = Eat("^");
    if (Peek() == ']') return Error("an empty class");
    std::optional<CodePointSet> intersection;
    CodePointSet set;
    while (!AtEnd() && Peek() != ']') {
      if (Eat("&&")) {
        intersection = intersection ? intersection->Intersection(set) : set;
        set = CodePointSet();
        continue;
      }
      SHOAL_RETURN_IF_ERROR(ClassItem(depth, set));
    }
    if (!Eat("]")) return Error("a class is not closed");
    return intersection ? intersection->Intersection(set) : set;
  }

  absl::Status ClassItem(int depth, CodePointSet& set) {
    if (Peek() == '[' && (Peek(1) == ':' || Peek(1) == '.' || Peek(1) == '=')) {
      return Error("POSIX brackets are not supported");
    }
    if (Eat("[")) {
      bool negated = false;
      SHOAL_ASSIGN_OR_RETURN(const CodePointSet inner, Class(depth + 1, negated));
      set.Add(negated ? inner.Complement() : inner);
      return absl::OkStatus();
    }
    SHOAL_ASSIGN_OR_RETURN(const Escape first, ClassCharacter());
    if (first.set) {
      set.Add(*first.set);
      return absl::OkStatus();
    }
    char32_t last = *first.character;
    if (Peek() == '-' && Peek(1) != ']' && Peek(1) != '\0') {
      ++position_;
      SHOAL_ASSIGN_OR_RETURN(const Escape end, ClassCharacter());
      if (!end.character || *end.character < last)
        return Error("a range of a class must go upwards");
      last = *end.character;
    }
    set.Add(*first.character, last);
    return absl::OkStatus();
  }

  absl::StatusOr<Escape> ClassCharacter() {
    if (Peek() != '\\') {
      if (Peek() == '[') return Error("a range may not end in a class");
      return Escape{.set = std::nullopt, .character = NextCharacter(), .assertion = ""};
    }
    if (Peek(1) == 'b') {  // Backspace, inside a class
      position_ += 2;
      return Escape{.set = std::nullopt, .character = U'\b', .assertion = ""};
    }
    SHOAL_ASSIGN_OR_RETURN(Escape escape, ReadEscape());
    if (!escape.assertion.empty()) return Error("an assertion inside a class");
    return escape;
  }

  absl::StatusOr<Escape> ReadEscape() {
    ++position_;  // The backslash
    if (AtEnd()) return Error("a trailing backslash");
    const char c = Peek();
    if (!absl::ascii_isalnum(c))
      return Escape{.set = std::nullopt, .character = NextCharacter(), .assertion = ""};
    ++position_;
    const auto set = [](CodePointSet s, bool negated) {
      return Escape{
          .set = negated ? s.Complement() : s, .character = std::nullopt, .assertion = ""};
    };
    const auto character = [](char32_t value) {
      return Escape{.set = std::nullopt, .character = value, .assertion = ""};
    };
    const auto assertion = [](std::string text) {
      return Escape{.set = std::nullopt, .character = std::nullopt, .assertion = std::move(text)};
    };
    switch (c) {
      case 's':
      case 'S':
        return set(Spaces(), c == 'S');
      case 'w':
      case 'W':
        return set(WordCharacters(), c == 'W');
      case 'd':
      case 'D':
        return set(Digits(), c == 'D');
      case 'h':
      case 'H':
        return set(HexDigits(), c == 'H');
      case 'p':
      case 'P': {
        SHOAL_ASSIGN_OR_RETURN(CodePointSet category, Property());
        return set(std::move(category), (c == 'P') != property_negated_);
      }
      case 'b':
      case 'B':
        return assertion(WordBorder(c == 'B'));
      case 'A':
      case 'z':
      case 'Z':
        return assertion(absl::StrCat("\\", absl::string_view(&c, 1)));
      case 'n':
        return character('\n');
      case 'r':
        return character('\r');
      case 't':
        return character('\t');
      case 'f':
        return character('\f');
      case 'v':
        return character('\v');
      case 'a':
        return character('\a');
      case 'e':
        return character(0x1B);
      case 'x':
      case 'u': {
        SHOAL_ASSIGN_OR_RETURN(const char32_t value, HexEscape(c));
        return character(value);
      }
      default:
        break;
    }
    return Error(absl::StrCat("\\", absl::string_view(&c, 1), " is not supported"));
  }

  static std::string WordBorder(bool negated) {
    const std::string w = absl::StrCat("[", WordCharacters().ToPcre2(), "]");
    if (negated) return absl::StrCat("(?:(?<=", w, ")(?=", w, ")|(?<!", w, ")(?!", w, "))");
    return absl::StrCat("(?:(?<=", w, ")(?!", w, ")|(?<!", w, ")(?=", w, "))");
  }

  // {Lu} or {^Lu} after \p.
  absl::StatusOr<CodePointSet> Property() {
    const size_t close = in_.find('}', position_);
    if (Peek() != '{' || close == absl::string_view::npos)
      return Error("\\p needs a name in braces");
    ++position_;
    property_negated_ = Eat("^");
    const absl::string_view name = in_.substr(position_, close - position_);
    auto category = CodePointSet::OfCategory(name);
    if (!category.ok()) return Error(category.status().message());
    position_ = close + 1;
    return category;
  }

  // \xHH below 80, \x{H...}, \uHHHH.
  absl::StatusOr<char32_t> HexEscape(char kind) {
    absl::string_view digits;
    size_t end = position_ + (kind == 'x' ? 2 : 4);
    if (kind == 'x' && Peek() == '{') {
      const size_t close = in_.find('}', position_);
      if (close == absl::string_view::npos) return Error("\\x{ without }");
      digits = in_.substr(position_ + 1, close - position_ - 1);
      end = close + 1;
    } else {
      if (end > in_.size()) return Error("too few hex digits");
      digits = in_.substr(position_, end - position_);
    }
    uint32_t value = 0;
    if (digits.size() > 8 || !absl::SimpleHexAtoi(digits, &value) || value > kMaxCodePoint ||
        (value >= 0xD800 && value < 0xE000)) {
      return Error("not a character's hexadecimal number");
    }
    if (kind == 'x' && digits.size() == 2 && in_[position_] != '{' && value >= 0x80) {
      return Error("\\x80 and above name bytes, not characters");
    }
    position_ = end;
    return value;
  }

  absl::string_view in_;
  size_t position_ = 0;
  std::string out_;
  std::optional<size_t> atom_;  // Where the last atom begins in out_: what a quantifier takes
  bool quantified_ = false;
  bool ignores_case_ = false;
  bool property_negated_ = false;
  std::string literals_;  // The literal characters up to here
  std::vector<Group> groups_;
};

}  // namespace

absl::StatusOr<std::string> TranslateRegex(absl::string_view oniguruma) {
  return Translator(oniguruma).Run();
}

}  // namespace shoal
