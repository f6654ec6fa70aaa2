// Jinja templates as chat templates use them, parsed. Reached through chat_template.h.
//
// Statements: for (with else and a filter), if, elif, else, set (names, attributes of a namespace),
// generation (passed through); expressions: literals, names, attributes, items, slices, calls,
// filters, tests, arithmetic, comparison, in, and, or, not, inline if. Anything else is refused by
// name. Blocks are trimmed as transformers has it: trim_blocks, lstrip_blocks.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "models/json.h"

namespace shoal::jinja {

// Thrown within the interpreter; ChatTemplate makes a Status of it.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Expression {
  enum class Kind {
    kLiteral,    // literal
    kName,       // text
    kList,       // parts
    kDict,       // parts: key, value, key, value, ...
    kAttribute,  // parts[0] . text
    kItem,       // parts[0] [ parts[1] ]
    kSlice,      // parts[0] [ parts[1] : parts[2] : parts[3] ], null where left out
    kCall,       // parts[0] (parts[1], ..., named)
    kFilter,     // parts[0] | text (parts[1], ..., named)
    kTest,       // parts[0] is text (parts[1])
    kUnary,      // text parts[0]: not, -
    kBinary,     // parts[0] text parts[1]
    kChoice,     // parts[1] if parts[0] else parts[2] (null: undefined)
  };
  Kind kind;
  std::string text;
  Json literal;
  std::vector<std::unique_ptr<Expression>> parts;
  std::vector<std::pair<std::string, std::unique_ptr<Expression>>> named;
  int line = 0;
};
using ExpressionPtr = std::unique_ptr<Expression>;

struct Statement {
  enum class Kind {
    kText,    // text
    kOutput,  // value
    kIf,      // value, body, otherwise
    kFor,     // targets in value (if condition), body, otherwise
    kSet,     // targets = value; with one target and `attribute`: targets[0].attribute = value
  };
  Kind kind;
  std::string text, attribute;
  std::vector<std::string> targets;
  ExpressionPtr value, condition;
  std::vector<Statement> body, otherwise;
};

// Error: "line N: what".
std::vector<Statement> Parse(const std::string& source);

}  // namespace shoal::jinja
