#include "inference/jinja_tokens.h"

#include <algorithm>
#include <cctype>

#include "absl/strings/str_cat.h"

#include "inference/jinja_syntax.h"

namespace shoal::jinja {
namespace {

bool IsSpace(char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; }

std::string ReadString(const std::string& text, size_t& at, int line) {
  const char quote = text[at++];
  std::string value;
  for (; at < text.size() && text[at] != quote; ++at) {
    if (text[at] != '\\' || at + 1 >= text.size()) {
      value += text[at];
      continue;
    }
    const char escaped = text[++at];
    static const std::string kFrom = "nrt0\\'\"", kTo = std::string("\n\r\t\0\\'\"", 7);
    const size_t known = kFrom.find(escaped);
    if (known == std::string::npos) value += '\\';
    value += known == std::string::npos ? escaped : kTo[known];
  }
  if (at >= text.size()) throw Error(absl::StrCat("line ", line, ": a string is not closed"));
  ++at;
  return value;
}

}  // namespace

std::vector<Piece> Cut(std::string source) {
  if (!source.empty() && source.back() == '\n') source.pop_back();  // keep_trailing_newline
  std::vector<Piece> pieces;
  size_t at = 0;
  int line = 1;
  bool strip_front = false, trim_newline = false;
  while (at <= source.size()) {
    size_t open = at;
    while ((open = source.find('{', open)) != std::string::npos && open + 1 < source.size() &&
           std::string("{%#").find(source[open + 1]) == std::string::npos)
      ++open;
    if (open != std::string::npos && open + 1 >= source.size()) open = std::string::npos;
    std::string text = source.substr(at, open == std::string::npos ? open : open - at);
    const int text_lines = static_cast<int>(std::count(text.begin(), text.end(), '\n'));
    bool line_starts = at == 0;
    if (strip_front) {
      const auto kept = std::find_if_not(text.begin(), text.end(), IsSpace);
      line_starts = kept != text.begin() && kept[-1] == '\n';
      text.erase(text.begin(), kept);
    } else if (trim_newline && !text.empty() && text[0] == '\n') {
      line_starts = true;
      text.erase(0, 1);
    }
    strip_front = trim_newline = false;
    if (open == std::string::npos) {
      pieces.push_back({Piece::Kind::kText, text, line});
      break;
    }
    line += text_lines;
    const char mark = source[open + 1];
    const std::string close = mark == '{' ? "}}" : mark == '%' ? "%}" : "#}";
    size_t begin = open + 2;
    const char sign = begin < source.size() ? source[begin] : ' ';
    if (sign == '-' || sign == '+') ++begin;
    if (sign == '-') {
      while (!text.empty() && IsSpace(text.back())) text.pop_back();
    } else if (mark != '{' && sign != '+') {
      const size_t line_begin = text.rfind('\n') + 1;  // 0 if there is none
      if ((line_begin > 0 || line_starts) &&
          std::all_of(text.begin() + line_begin, text.end(), IsSpace))
        text.resize(line_begin);
    }
    if (!text.empty()) pieces.push_back({Piece::Kind::kText, text, line});

    // The end of the tag, strings within it aside.
    size_t end = begin;
    char quote = 0;
    for (; end < source.size(); ++end) {
      if (quote) {
        if (source[end] == '\\')
          ++end;
        else if (source[end] == quote)
          quote = 0;
      } else if (mark != '#' && (source[end] == '\'' || source[end] == '"')) {
        quote = source[end];
      } else if (source.compare(end, 2, close) == 0) {
        break;
      }
    }
    if (end >= source.size()) throw Error(absl::StrCat("line ", line, ": ", "a tag is not closed"));
    std::string inside = source.substr(begin, end - begin);
    const int inside_lines = static_cast<int>(std::count(inside.begin(), inside.end(), '\n'));
    if (!inside.empty() && (inside.back() == '-' || inside.back() == '+')) {
      strip_front = inside.back() == '-';
      inside.pop_back();
    } else {
      trim_newline = mark != '{';
    }
    if (mark == '{') pieces.push_back({Piece::Kind::kOutput, inside, line});
    if (mark == '%') pieces.push_back({Piece::Kind::kBlock, inside, line});
    line += inside_lines;
    at = end + 2;
  }
  return pieces;
}

std::vector<Token> Tokens(const std::string& text, int line) {
  std::vector<Token> tokens;
  for (size_t at = 0; at < text.size();) {
    const char c = text[at];
    const auto word = [&](auto&& belongs) {
      const size_t begin = at;
      while (at < text.size() && belongs(text[at])) ++at;
      return text.substr(begin, at - begin);
    };
    if (IsSpace(c)) {
      ++at;
    } else if (std::isalpha(static_cast<unsigned char>(c)) || c == '_') {
      tokens.push_back({Token::Kind::kName, word([](char x) {
                          return std::isalnum(static_cast<unsigned char>(x)) || x == '_';
                        })});
    } else if (std::isdigit(static_cast<unsigned char>(c))) {
      tokens.push_back({Token::Kind::kNumber, word([](char x) {
                          return std::isdigit(static_cast<unsigned char>(x)) || x == '.';
                        })});
    } else if (c == '\'' || c == '"') {
      tokens.push_back({Token::Kind::kString, ReadString(text, at, line)});
    } else {
      std::string sign(1, c);
      for (const char* two : {"==", "!=", "<=", ">=", "//", "**"}) {
        if (text.compare(at, 2, two) == 0) sign = two;
      }
      if (std::string("+-*/%~()[]{}.,:|=<>!").find(c) == std::string::npos)
        throw Error(absl::StrCat("line ", line, ": unexpected '", sign, "'"));
      tokens.push_back({Token::Kind::kSign, sign});
      at += sign.size();
    }
  }
  tokens.push_back({Token::Kind::kEnd, ""});
  return tokens;
}

}  // namespace shoal::jinja
