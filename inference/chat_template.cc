#include "inference/chat_template.h"

#include <algorithm>

#include "absl/strings/str_replace.h"

#include "inference/jinja_values.h"

namespace shoal {
namespace jinja {
namespace {

constexpr int64_t kMaxOutputBytes = int64_t{64} << 20;
constexpr int64_t kMaxRange = 1 << 20;

// Runs statements. Names are looked up from the innermost scope out; `set` writes to the innermost,
// which is the loop's own within a loop.
class Machine {
 public:
  explicit Machine(std::map<std::string, Value> globals) { scopes_.push_back(std::move(globals)); }

  std::string Run(const std::vector<Statement>& statements) {
    RunAll(statements);
    return std::move(output_);
  }

 private:
  void RunAll(const std::vector<Statement>& statements) {
    for (const Statement& statement : statements) RunOne(statement);
  }

  void RunOne(const Statement& statement) {
    switch (statement.kind) {
      case Statement::Kind::kText:
        Write(statement.text);
        return;
      case Statement::Kind::kOutput:
        Write(Print(Evaluate(*statement.value)));
        return;
      case Statement::Kind::kIf:
        RunAll(IsTrue(Evaluate(*statement.value)) ? statement.body : statement.otherwise);
        return;
      case Statement::Kind::kFor:
        RunFor(statement);
        return;
      case Statement::Kind::kSet:
        Set(statement);
        return;
    }
  }

  void Write(const std::string& text) {
    output_ += text;
    if (static_cast<int64_t>(output_.size()) > kMaxOutputBytes)
      throw Error("the text grows without end");
  }

  void Assign(const std::vector<std::string>& names, const Value& value) {
    if (names.size() == 1) {
      scopes_.back()[names[0]] = value;
      return;
    }
    if (!value.json.is_array() || value.json.size() != names.size())
      throw Error(absl::StrCat("cannot give ", names.size(), " names to ", ShowJson(value.json)));
    for (size_t i = 0; i < names.size(); ++i)
      scopes_.back()[names[i]] = {.json = value.json[i], .defined = true, .space = {}};
  }

  void Set(const Statement& statement) {
    Value value = Evaluate(*statement.value);
    if (statement.attribute.empty()) return Assign(statement.targets, value);
    const Value space = Name(statement.targets[0]);
    if (!space.space) throw Error(absl::StrCat(statement.targets[0], " is no namespace"));
    (*space.space)[statement.attribute] = std::move(value);
  }

  void RunFor(const Statement& statement) {
    const Value over = Evaluate(*statement.value);
    if (!over.defined) throw Error("for: there is nothing to go through");
    Json elements = ApplyFilter("list", over, {}).json;
    scopes_.emplace_back();
    if (statement.condition) {
      Json kept = Json::array();
      for (const Json& element : elements) {
        Assign(statement.targets, {.json = element, .defined = true, .space = {}});
        if (IsTrue(Evaluate(*statement.condition))) kept.push_back(element);
      }
      elements = std::move(kept);
    }
    const size_t count = elements.size();
    for (size_t i = 0; i < count; ++i) {
      scopes_.back().clear();
      Json loop = {{"index", i + 1},        {"index0", i},
                   {"revindex", count - i}, {"revindex0", count - i - 1},
                   {"first", i == 0},       {"last", i + 1 == count},
                   {"length", count}};
      if (i > 0) loop["previtem"] = elements[i - 1];
      if (i + 1 < count) loop["nextitem"] = elements[i + 1];
      scopes_.back()["loop"] = {.json = std::move(loop), .defined = true, .space = {}};
      Assign(statement.targets, {.json = elements[i], .defined = true, .space = {}});
      RunAll(statement.body);
    }
    scopes_.pop_back();
    if (count == 0) RunAll(statement.otherwise);
  }

  Value Name(const std::string& name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      if (const auto found = scope->find(name); found != scope->end()) return found->second;
    }
    return Value::Undefined();
  }

  Value EvaluateOr(const ExpressionPtr& expression) {
    return expression ? Evaluate(*expression) : Value::Undefined();
  }

  Value Evaluate(const Expression& x) {
    try {
      return EvaluateHere(x);
    } catch (const Raised&) {
      throw;
    } catch (const Error& error) {
      if (located_) throw;
      located_ = true;
      throw Error(absl::StrCat("line ", x.line, ": ", error.what()));
    }
  }

  Value EvaluateHere(const Expression& x) {
    const auto of = [](Json json) {
      return Value{.json = std::move(json), .defined = true, .space = {}};
    };
    const auto part = [&](size_t i) { return Evaluate(*x.parts[i]); };
    switch (x.kind) {
      case Expression::Kind::kLiteral:
        return of(x.literal);
      case Expression::Kind::kName:
        return Name(x.text);
      case Expression::Kind::kList: {
        Json list = Json::array();
        for (const ExpressionPtr& each : x.parts) list.push_back(Evaluate(*each).json);
        return of(list);
      }
      case Expression::Kind::kDict: {
        Json object = Json::object();
        for (size_t i = 0; i < x.parts.size(); i += 2) object[Print(part(i))] = part(i + 1).json;
        return of(object);
      }
      case Expression::Kind::kAttribute:
        return Member(part(0), of(x.text));
      case Expression::Kind::kItem:
        return Member(part(0), part(1));
      case Expression::Kind::kSlice:
        return Slice(part(0), EvaluateOr(x.parts[1]), EvaluateOr(x.parts[2]),
                     EvaluateOr(x.parts[3]));
      case Expression::Kind::kCall:
        return Call(x);
      case Expression::Kind::kFilter:
        return ApplyFilter(x.text, part(0), ArgumentsOf(x));
      case Expression::Kind::kTest:
        return of(ApplyTest(x.text, part(0), ArgumentsOf(x)));
      case Expression::Kind::kUnary:
        if (x.text == "not") return of(!IsTrue(part(0)));
        return Arithmetic("-", of(0), part(0));
      case Expression::Kind::kBinary:
        return Binary(x);
      case Expression::Kind::kChoice:
        return IsTrue(part(0)) ? part(1) : EvaluateOr(x.parts[2]);
    }
    return Value::Undefined();
  }

  Value Binary(const Expression& x) {
    const auto of = [](bool json) { return Value{.json = json, .defined = true, .space = {}}; };
    const Value a = Evaluate(*x.parts[0]);
    if (x.text == "and") return IsTrue(a) ? Evaluate(*x.parts[1]) : a;
    if (x.text == "or") return IsTrue(a) ? a : Evaluate(*x.parts[1]);
    const Value b = Evaluate(*x.parts[1]);
    if (x.text == "==") return of(Equal(a, b));
    if (x.text == "!=") return of(!Equal(a, b));
    if (x.text == "<") return of(Less(a, b));
    if (x.text == ">") return of(Less(b, a));
    if (x.text == "<=") return of(!Less(b, a));
    if (x.text == ">=") return of(!Less(a, b));
    if (x.text == "in") return of(Contains(b, a));
    if (x.text == "~") return {.json = Print(a) + Print(b), .defined = true, .space = {}};
    return x.text == "+" ? Add(a, b) : Arithmetic(x.text, a, b);
  }

  Arguments ArgumentsOf(const Expression& x) {
    Arguments arguments;
    for (size_t i = 1; i < x.parts.size(); ++i) arguments.values.push_back(Evaluate(*x.parts[i]));
    for (const auto& [name, value] : x.named) arguments.named[name] = Evaluate(*value);
    return arguments;
  }

  Value Call(const Expression& x) {
    const Expression& callee = *x.parts[0];
    const Arguments arguments = ArgumentsOf(x);
    if (callee.kind == Expression::Kind::kAttribute)
      return CallMethod(Evaluate(*callee.parts[0]), callee.text, arguments);
    const std::string name = callee.kind == Expression::Kind::kName ? callee.text : "this";
    if (name == "raise_exception")
      throw Raised(Print(arguments.Get(0, "message", Value::Undefined())));
    if (name == "namespace") {
      Value space;
      space.space = std::make_shared<std::map<std::string, Value>>(arguments.named);
      return space;
    }
    if (name == "range") {
      const Value first = arguments.Get(0, "start", {}), second = arguments.Get(1, "stop", {});
      const bool two = arguments.values.size() > 1;
      if (!first.json.is_number_integer() || (two && !second.json.is_number_integer()) ||
          arguments.values.size() > 2)
        throw Error("range takes one or two whole numbers");
      const int64_t begin = two ? first.json.get<int64_t>() : 0,
                    end = two ? second.json.get<int64_t>() : first.json.get<int64_t>();
      if (end - begin > kMaxRange) throw Error("range: too many numbers");
      Json numbers = Json::array();
      for (int64_t i = begin; i < end; ++i) numbers.push_back(i);
      return {.json = numbers, .defined = true, .space = {}};
    }
    throw Error(absl::StrCat("the function ", name, " is not supported"));
  }

  // What the template itself refuses: told as it is.
  class Raised : public Error {
   public:
    using Error::Error;
  };

  std::vector<std::map<std::string, Value>> scopes_;
  std::string output_;
  bool located_ = false;
};

}  // namespace
}  // namespace jinja

absl::StatusOr<ChatTemplate> ChatTemplate::FromJinja(const std::string& source,
                                                     std::map<std::string, std::string> variables) {
  ChatTemplate made;
  made.variables_ = std::move(variables);
  try {
    made.program_ = std::make_shared<const std::vector<jinja::Statement>>(jinja::Parse(source));
  } catch (const jinja::Error& error) {
    return absl::InvalidArgumentError(absl::StrCat("chat template: ", error.what()));
  }
  return made;
}

absl::StatusOr<ChatTemplate> ChatTemplate::Plain(const std::string& turn_start,
                                                 const std::string& turn_end) {
  if (turn_start.find("{role}") == std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("the beginning of a turn, \"", turn_start,
                     "\", lacks {role}, which stands for who speaks"));
  }
  ChatTemplate made;
  made.turn_start_ = turn_start;
  made.turn_end_ = turn_end;
  return made;
}

absl::StatusOr<std::string> ChatTemplate::Render(const std::vector<ChatMessage>& messages) const {
  if (!program_) {
    std::string text;
    const auto start = [&](const std::string& role) {
      return absl::StrReplaceAll(turn_start_, {{"{role}", role}});
    };
    for (const ChatMessage& message : messages)
      absl::StrAppend(&text, start(message.role), message.content, turn_end_);
    return absl::StrCat(text, start("assistant"));
  }
  std::map<std::string, jinja::Value> globals;
  const auto set = [&](const std::string& name, Json json) {
    globals[name] = {.json = std::move(json), .defined = true, .space = {}};
  };
  Json list = Json::array();
  for (const ChatMessage& message : messages)
    list.push_back({{"role", message.role}, {"content", message.content}});
  for (const auto& [name, value] : variables_) set(name, value);
  set("messages", std::move(list));
  set("add_generation_prompt", true);
  set("tools", nullptr);
  set("documents", nullptr);
  try {
    return jinja::Machine(std::move(globals)).Run(*program_);
  } catch (const jinja::Error& error) {
    return absl::InvalidArgumentError(absl::StrCat("chat template: ", error.what()));
  } catch (const Json::exception& error) {  // A number too large, say
    return absl::InvalidArgumentError(absl::StrCat("chat template: ", error.what()));
  }
}

absl::StatusOr<std::optional<ChatTemplate>> LoadChatTemplate(FileSystem& files,
                                                             const std::string& directory) {
  Json config = Json::object();
  const std::string config_path = JoinPath(directory, "tokenizer_config.json");
  SHOAL_ASSIGN_OR_RETURN(const bool has_config, Exists(files, config_path));
  if (has_config) {
    SHOAL_ASSIGN_OR_RETURN(config, ReadJsonFile(files, config_path));
  }
  std::optional<std::string> source;
  std::string where = config_path;
  const std::string file = JoinPath(directory, "chat_template.jinja");
  SHOAL_ASSIGN_OR_RETURN(const bool has_file, Exists(files, file));
  if (has_file) {
    SHOAL_ASSIGN_OR_RETURN(source, ReadFile(files, file, 16 << 20));
    where = file;
  } else if (config.is_object() && config.contains("chat_template")) {
    const Json& given = config["chat_template"];
    if (given.is_string()) source = given.get<std::string>();
    for (const Json& each : given.is_array() ? given : Json::array()) {
      if (each.is_object() && each.value("name", "") == "default" && each.contains("template") &&
          each["template"].is_string())
        source = each["template"].get<std::string>();
    }
  }
  if (!source) return std::nullopt;
  std::map<std::string, std::string> variables;
  for (const auto& [key, value] : config.items()) {
    if (key.size() < 6 || key.substr(key.size() - 6) != "_token") continue;
    if (value.is_string()) variables[key] = value.get<std::string>();
    if (value.is_object() && value.contains("content") && value["content"].is_string())
      variables[key] = value["content"].get<std::string>();
  }
  absl::StatusOr<ChatTemplate> made = ChatTemplate::FromJinja(*source, std::move(variables));
  if (!made.ok()) return Annotate(made.status(), where);
  return std::optional<ChatTemplate>(*std::move(made));
}

}  // namespace shoal
