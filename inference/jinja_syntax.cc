#include "inference/jinja_syntax.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

#include "inference/jinja_tokens.h"

namespace shoal::jinja {
namespace {

using Kind = Expression::Kind;

// Recursive descent over the tokens of one tag; Jinja's own order of precedence.
class ExpressionParser {
 public:
  ExpressionParser(const std::string& text, int line) : tokens_(Tokens(text, line)), line_(line) {}

  const Token& Peek() const { return tokens_[at_]; }
  bool Is(const std::string& text) const {
    return (Peek().kind == Token::Kind::kSign || Peek().kind == Token::Kind::kName) &&
           Peek().text == text;
  }
  bool Take(const std::string& text) {
    if (!Is(text)) return false;
    ++at_;
    return true;
  }
  void Expect(const std::string& text) {
    if (!Take(text)) Fail(absl::StrCat("expected '", text, "'"));
  }
  std::string Name() {
    if (Peek().kind != Token::Kind::kName) Fail("expected a name");
    return tokens_[at_++].text;
  }
  void End() {
    if (Peek().kind != Token::Kind::kEnd) Fail("expected the end of the tag");
  }
  [[noreturn]] void Fail(const std::string& what) const {
    const std::string got = Peek().kind == Token::Kind::kEnd ? "its end" : Peek().text;
    throw Error(absl::StrCat("line ", line_, ": ", what, ", got ", got));
  }

  ExpressionPtr Whole() {
    ExpressionPtr value = Choice();
    if (!Is(",")) return value;
    ExpressionPtr list = Make(Kind::kList);
    list->parts.push_back(std::move(value));
    while (Take(",")) list->parts.push_back(Choice());
    return list;
  }

  ExpressionPtr Choice() {
    ExpressionPtr value = Or();
    while (Take("if")) {
      ExpressionPtr condition = Or();
      ExpressionPtr otherwise = Take("else") ? Choice() : nullptr;
      value = Make(Kind::kChoice, "", std::move(condition), std::move(value));
      value->parts.push_back(std::move(otherwise));
    }
    return value;
  }

  ExpressionPtr Or() {
    return LeftToRight({"or"}, [this] { return And(); });
  }

 private:
  template <class... Parts>
  ExpressionPtr Make(Kind kind, std::string text = "", Parts... parts) {
    auto made = std::make_unique<Expression>();
    made->kind = kind;
    made->text = std::move(text);
    made->line = line_;
    (made->parts.push_back(std::move(parts)), ...);
    return made;
  }

  template <class Next>
  ExpressionPtr LeftToRight(std::initializer_list<const char*> signs, Next next) {
    ExpressionPtr value = next();
    for (bool more = true; more;) {
      more = false;
      for (const char* sign : signs) {
        if (!Take(sign)) continue;
        ExpressionPtr right = next();
        value = Make(Kind::kBinary, sign, std::move(value), std::move(right));
        more = true;
        break;
      }
    }
    return value;
  }

  ExpressionPtr And() {
    return LeftToRight({"and"}, [this] { return Not(); });
  }
  ExpressionPtr Not() {
    if (Take("not")) return Make(Kind::kUnary, "not", Not());
    return Compare();
  }
  ExpressionPtr Compare() {
    ExpressionPtr value = Sum();
    for (;;) {
      std::string sign;
      for (const char* each : {"==", "!=", "<=", ">=", "<", ">", "in"}) {
        if (sign.empty() && Take(each)) sign = each;
      }
      if (sign.empty() && Is("not") && tokens_[at_ + 1].text == "in") {
        at_ += 2;
        value = Make(Kind::kUnary, "not", Make(Kind::kBinary, "in", std::move(value), Sum()));
        continue;
      }
      if (sign.empty()) return value;
      ExpressionPtr right = Sum();
      value = Make(Kind::kBinary, sign, std::move(value), std::move(right));
    }
  }
  ExpressionPtr Sum() {
    return LeftToRight({"+", "-"}, [this] { return Concatenation(); });
  }
  ExpressionPtr Concatenation() {
    return LeftToRight({"~"}, [this] { return Product(); });
  }
  ExpressionPtr Product() {
    return LeftToRight({"*", "//", "/", "%"}, [this] { return Unary(); });
  }
  ExpressionPtr Unary() {
    if (Take("-")) return Make(Kind::kUnary, "-", Unary());
    return Postfix(Primary());
  }

  ExpressionPtr Primary() {
    const Token token = Peek();
    ExpressionPtr value = Make(Kind::kLiteral);
    if (token.kind == Token::Kind::kString) {
      for (; Peek().kind == Token::Kind::kString; ++at_)  // Neighbours are one
        value->literal =
            (value->literal.is_null() ? "" : value->literal.get<std::string>()) + Peek().text;
    } else if (token.kind == Token::Kind::kNumber) {
      int64_t whole;
      double real;
      if (absl::SimpleAtoi(token.text, &whole))
        value->literal = whole;
      else if (absl::SimpleAtod(token.text, &real))
        value->literal = real;
      else
        Fail("expected a number");
      ++at_;
    } else if (Take("(")) {
      value = Whole();
      Expect(")");
    } else if (Take("[")) {
      value = Make(Kind::kList);
      while (!Take("]")) {
        value->parts.push_back(Choice());
        if (!Is("]")) Expect(",");
      }
    } else if (Take("{")) {
      value = Make(Kind::kDict);
      while (!Take("}")) {
        value->parts.push_back(Choice());
        Expect(":");
        value->parts.push_back(Choice());
        if (!Is("}")) Expect(",");
      }
    } else {
      const std::string name = Name();
      if (name == "true" || name == "True")
        value->literal = true;
      else if (name == "false" || name == "False")
        value->literal = false;
      else if (name != "none" && name != "None")
        value = Make(Kind::kName, name);
    }
    return value;
  }

  void Arguments(Expression& call) {
    while (!Take(")")) {
      if (Peek().kind == Token::Kind::kName && tokens_[at_ + 1].text == "=" &&
          tokens_[at_ + 1].kind == Token::Kind::kSign) {
        const std::string name = Name();
        Expect("=");
        call.named.emplace_back(name, Choice());
      } else {
        call.parts.push_back(Choice());
      }
      if (!Is(")")) Expect(",");
    }
  }

  ExpressionPtr Subscript(ExpressionPtr value) {
    ExpressionPtr first = Is(":") ? nullptr : Choice();
    if (!Is(":")) {
      Expect("]");
      return Make(Kind::kItem, "", std::move(value), std::move(first));
    }
    ExpressionPtr bounds[2];
    for (ExpressionPtr& bound : bounds) {
      if (!Take(":")) break;
      if (!Is(":") && !Is("]")) bound = Choice();
    }
    Expect("]");
    return Make(Kind::kSlice, "", std::move(value), std::move(first), std::move(bounds[0]),
                std::move(bounds[1]));
  }

  ExpressionPtr Postfix(ExpressionPtr value) {
    for (;;) {
      if (Take(".")) {
        value = Make(Kind::kAttribute, Name(), std::move(value));
      } else if (Take("[")) {
        value = Subscript(std::move(value));
      } else if (Take("(")) {
        value = Make(Kind::kCall, "", std::move(value));
        Arguments(*value);
      } else if (Take("|")) {
        value = Make(Kind::kFilter, Name(), std::move(value));
        if (Take("(")) Arguments(*value);
      } else if (Take("is")) {
        const bool negated = Take("not");
        value = Make(Kind::kTest, Name(), std::move(value));
        if (Take("(")) Arguments(*value);
        if (negated) value = Make(Kind::kUnary, "not", std::move(value));
      } else {
        return value;
      }
    }
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int line_;
};

class StatementParser {
 public:
  explicit StatementParser(const std::string& source) : pieces_(Cut(source)) {}

  std::vector<Statement> All() {
    std::string end;
    std::vector<Statement> statements = Until({}, end);
    return statements;
  }

 private:
  // Statements up to a block that begins with one of `ends`, which is left in `at_`'s place before.
  std::vector<Statement> Until(std::vector<std::string> ends, std::string& end) {
    std::vector<Statement> statements;
    while (at_ < pieces_.size()) {
      const Piece& piece = pieces_[at_++];
      if (piece.kind == Piece::Kind::kText) {
        statements.push_back({.kind = Statement::Kind::kText, .text = piece.text});
        continue;
      }
      ExpressionParser parser(piece.text, piece.line);
      if (piece.kind == Piece::Kind::kOutput) {
        statements.push_back({.kind = Statement::Kind::kOutput, .value = parser.Whole()});
        parser.End();
        continue;
      }
      end = parser.Name();
      if (std::find(ends.begin(), ends.end(), end) != ends.end()) return statements;
      if (end == "if") {
        statements.push_back(If(parser));
      } else if (end == "for") {
        statements.push_back(For(parser));
      } else if (end == "set") {
        statements.push_back(Set(parser));
      } else if (end == "generation") {
        for (Statement& inner : Until({"endgeneration"}, end))
          statements.push_back(std::move(inner));
      } else {
        throw Error(absl::StrCat("line ", piece.line, ": {% ", end, " %} is not supported"));
      }
    }
    if (!ends.empty()) throw Error(absl::StrCat("a block lacks its {% ", ends.back(), " %}"));
    return statements;
  }

  Statement If(ExpressionParser& parser) {
    Statement made{.kind = Statement::Kind::kIf, .value = parser.Choice()};
    parser.End();
    std::string end;
    made.body = Until({"elif", "else", "endif"}, end);
    if (end == "elif") {
      const Piece& piece = pieces_[at_ - 1];
      ExpressionParser condition(piece.text, piece.line);
      condition.Name();
      made.otherwise.push_back(If(condition));  // Takes the endif
    } else if (end == "else") {
      made.otherwise = Until({"endif"}, end);
    }
    return made;
  }

  Statement For(ExpressionParser& parser) {
    Statement made{.kind = Statement::Kind::kFor, .targets = {parser.Name()}};
    while (parser.Take(",")) made.targets.push_back(parser.Name());
    parser.Expect("in");
    made.value = parser.Or();
    if (parser.Take("if")) made.condition = parser.Choice();
    parser.End();
    std::string end;
    made.body = Until({"else", "endfor"}, end);
    if (end == "else") made.otherwise = Until({"endfor"}, end);
    return made;
  }

  Statement Set(ExpressionParser& parser) {
    Statement made{.kind = Statement::Kind::kSet, .targets = {parser.Name()}};
    if (parser.Take(".")) made.attribute = parser.Name();
    while (parser.Take(",")) made.targets.push_back(parser.Name());
    parser.Expect("=");
    made.value = parser.Whole();
    parser.End();
    return made;
  }

  std::vector<Piece> pieces_;
  size_t at_ = 0;
};

}  // namespace

std::vector<Statement> Parse(const std::string& source) { return StatementParser(source).All(); }

}  // namespace shoal::jinja
