#include "core/recipe_yaml.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <deque>
#include <sstream>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace shoal {
namespace {

// Bytes of the well-formed UTF-8 character at text[i] (Unicode 15, table 3-7), or 0.
size_t Utf8Length(absl::string_view text, size_t i) {
  const auto byte = [&](size_t k) {
    return k < text.size() ? static_cast<unsigned char>(text[k]) : 0u;
  };
  const unsigned lead = byte(i);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  for (size_t k = 1; k < length; ++k) {
    if ((byte(i + k) & 0xC0) != 0x80) return 0;
  }
  const unsigned second = byte(i + 1);
  const bool overlong = (lead == 0xE0 && second < 0xA0) || (lead == 0xF0 && second < 0x90);
  const bool outside = (lead == 0xED && second > 0x9F) || (lead == 0xF4 && second > 0x8F);
  return overlong || outside ? 0 : length;
}

// Turns yaml-cpp's byte positions into ours, in characters.
class LineIndex {
 public:
  explicit LineIndex(absl::string_view text) : text_(text) {
    starts_.push_back(0);
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] == '\n') starts_.push_back(i + 1);
    }
  }

  RecipeOrigin At(const RecipeOrigin& source, const YAML::Mark& mark) const {
    if (mark.is_null()) return AtByte(source, 0);
    const size_t line = std::min<size_t>(mark.line, starts_.size() - 1);
    return AtByte(source, std::min(starts_[line] + mark.column, text_.size()));
  }

  RecipeOrigin AtByte(const RecipeOrigin& source, size_t byte) const {
    const size_t line =
        std::upper_bound(starts_.begin(), starts_.end(), byte) - starts_.begin() - 1;
    int column = 1;
    for (size_t i = starts_[line]; i < byte; ++i) column += (text_[i] & 0xC0) != 0x80;
    return {source.source, static_cast<int>(line) + 1, column};
  }

  absl::string_view Line(int number) const {
    const size_t start = starts_[number - 1];
    return text_.substr(start, text_.find('\n', start) - start);
  }

 private:
  absl::string_view text_;
  std::vector<size_t> starts_;  // Byte at which each line starts
};

// Ends the parse from inside an event; the error is already recorded.
struct StopParsing {};

class TreeBuilder : public YAML::EventHandler {
 public:
  TreeBuilder(const LineIndex& lines, const RecipeOrigin& source, std::vector<RecipeError>& errors)
      : lines_(lines), source_(source), errors_(errors) {}

  YamlNode root;

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (documents_++ > 0) Stop(mark, "a second document starts here, expected one document");
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    Place(mark, "", anchor, YamlNode::Kind::kNull, "");
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    Error(mark,
          "is an alias (*name): aliases are not accepted, write the value out or use ${key.path}");
    Place(mark, "", 0, YamlNode::Kind::kNull, "");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    Place(mark, tag, anchor, YamlNode::Kind::kScalar, value);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    Open(mark, tag, anchor, YamlNode::Kind::kList);
  }
  void OnSequenceEnd() override { open_.pop_back(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    Open(mark, tag, anchor, YamlNode::Kind::kMap);
  }
  void OnMapEnd() override { open_.pop_back(); }

  [[noreturn]] void Stop(const YAML::Mark& mark, std::string message) {
    Error(mark, std::move(message));
    throw StopParsing{};
  }

 private:
  struct Frame {
    YamlNode* node;
    bool value_next = false;  // Of a map: a key was read
    bool skip_value = false;  // The key was refused, its value has no place
    std::string key;          // Of a map: the last key read
  };

  void Error(const YAML::Mark& mark, std::string message) {
    errors_.push_back({lines_.At(source_, mark), Path(), std::move(message)});
  }

  // The key path of the node that comes next.
  std::string Path() const {
    std::vector<std::string> names;
    for (const Frame& frame : open_) {
      const bool last = &frame == &open_.back();
      if (frame.node->IsList()) names.push_back(absl::StrCat(frame.node->items.size() - !last));
      if (frame.node->IsMap() && (!last || frame.value_next))
        names.push_back(frame.key.substr(0, 60));
    }
    return absl::StrJoin(names, ".");
  }

  void Open(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
            YamlNode::Kind kind) {
    if (static_cast<int>(open_.size()) >= kMaxRecipeDepth) {
      Stop(mark, absl::StrCat("is nested deeper than ", kMaxRecipeDepth, " levels"));
    }
    YamlNode* node = Place(mark, tag, anchor, kind, "");
    open_.push_back({node, false, false, ""});
  }

  // Puts a node where the document's next one belongs: the root, a list's end, a map's key or its
  // value.
  YamlNode* Place(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YamlNode::Kind kind, const std::string& text) {
    if (++nodes_ > kMaxRecipeNodes)
      Stop(mark, absl::StrCat("more than ", kMaxRecipeNodes, " values"));
    if (anchor != 0)
      Error(mark,
            "has an anchor (&name): anchors are not accepted, write the value out or use "
            "${key.path}");
    if (!tag.empty() && tag != "?" && tag != "!") {
      Error(mark, absl::StrCat("has a tag (", tag,
                               "): tags are not accepted, the schema gives every value its type"));
    }
    YamlNode node;
    node.kind = kind;
    node.origin = lines_.At(source_, mark);
    node.text = text;
    node.quoted = tag == "!";
    if (open_.empty()) return &(root = std::move(node));
    Frame& frame = open_.back();
    if (frame.node->IsList()) return &frame.node->items.emplace_back(std::move(node));
    if (frame.value_next) return PlaceValue(frame, std::move(node));
    return PlaceKey(frame, mark, std::move(node));
  }

  YamlNode* PlaceKey(Frame& frame, const YAML::Mark& mark, YamlNode node) {
    if (frame.node->entries.size() >= kMaxRecipeKeys)
      Stop(mark, absl::StrCat("more than ", kMaxRecipeKeys, " keys in one map"));
    frame.key = node.text;
    frame.value_next = true;
    frame.skip_value = true;
    if (!node.IsScalar()) {
      Error(mark, node.IsNull() ? "an empty key" : "a list or a map as a key, expected a name");
    } else if (const YamlNode::Entry* first = frame.node->Find(node.text)) {
      Error(mark, absl::StrCat("given twice, first at line ", first->origin.line));
    } else if (node.text == "<<") {
      Error(mark, "merge keys are not accepted, use extends");
    } else {
      frame.skip_value = false;
      frame.node->entries.push_back({node.text, node.origin, {}});
    }
    return &discarded_.emplace_back(std::move(node));
  }

  YamlNode* PlaceValue(Frame& frame, YamlNode node) {
    frame.value_next = false;
    if (frame.skip_value) return &discarded_.emplace_back(std::move(node));
    YamlNode::Entry& entry = frame.node->entries.back();
    if (node.IsNull()) node.origin = entry.origin;  // yaml-cpp marks the next token
    return &(entry.value = std::move(node));
  }

  const LineIndex& lines_;
  const RecipeOrigin& source_;
  std::vector<RecipeError>& errors_;
  std::vector<Frame> open_;
  std::deque<YamlNode> discarded_;  // Refused keys and their values; a deque keeps them in place
  int nodes_ = 0;
  int documents_ = 0;
};

// What yaml-cpp's parser would misread or cannot place. Returns false if the text is not worth
// parsing.
bool CheckBytes(absl::string_view text, const LineIndex& lines, const RecipeOrigin& source,
                std::vector<RecipeError>& errors) {
  for (size_t i = 0; i < text.size();) {
    const unsigned char byte = text[i];
    std::string problem;
    const size_t length = Utf8Length(text, i);
    if (length == 0) problem = absl::StrFormat("byte 0x%02x is not UTF-8", byte);
    if (byte == '\r' && (i + 1 == text.size() || text[i + 1] != '\n'))
      problem = "a carriage return without a line feed";
    if (byte < 0x20 && byte != '\n' && byte != '\r' && byte != '\t') {
      problem = absl::StrFormat("control character 0x%02x", byte);
    }
    if (!problem.empty()) {
      errors.push_back(
          {lines.AtByte(source, i), "", absl::StrCat(problem, ", expected a text file in UTF-8")});
      return false;
    }
    i += length;
  }
  return true;
}

std::string SyntaxError(const YAML::Exception& error, absl::string_view line) {
  std::string message = absl::StrCat("not YAML: ", error.msg);
  if (absl::StrContains(line, "${") &&
      absl::StrContains(absl::string_view(line).substr(0, line.find("${")), "{")) {
    absl::StrAppend(&message, " (a ${...} inside { } must be quoted)");
  } else if (absl::StrContains(line, '\t')) {
    absl::StrAppend(&message, " (the line holds a tab; YAML is indented with spaces)");
  }
  return message;
}

}  // namespace

YamlNode::Entry* YamlNode::Find(absl::string_view key) {
  for (Entry& entry : entries) {
    if (entry.key == key) return &entry;
  }
  return nullptr;
}

const YamlNode::Entry* YamlNode::Find(absl::string_view key) const {
  return const_cast<YamlNode*>(this)->Find(key);
}

bool ParseYaml(absl::string_view text, const RecipeOrigin& source, YamlNode& root,
               std::vector<RecipeError>& errors) {
  const RecipeOrigin start{source.source, 1, 1};
  root.origin = start;
  if (text.size() > kMaxRecipeBytes) {
    errors.push_back({start, "", absl::StrCat("more than ", kMaxRecipeBytes, " bytes")});
    return false;
  }
  if (absl::StartsWith(text, "\xEF\xBB\xBF")) text.remove_prefix(3);
  const LineIndex lines(text);
  if (!CheckBytes(text, lines, source, errors)) return false;
  TreeBuilder builder(lines, source, errors);
  const size_t errors_before = errors.size();
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const StopParsing&) {
    return false;
  } catch (const YAML::Exception& error) {
    // What the parser made of the text up to here may be an effect of the error.
    errors.erase(errors.begin() + errors_before, errors.end());
    const RecipeOrigin origin = lines.At(source, error.mark);
    errors.push_back({origin, "", SyntaxError(error, lines.Line(origin.line))});
    return false;
  }
  if (!builder.root.IsNull()) root = std::move(builder.root);
  return true;
}

std::string QuotedYaml(absl::string_view text) {
  static constexpr absl::string_view kReserved[] = {"null", "true", "false", "yes", "no", "on",
                                                    "off",  "y",    "n",     "nan", "inf"};
  const std::string lower = absl::AsciiStrToLower(text);
  bool plain = !text.empty() &&
               (absl::ascii_isalpha(text[0]) || text[0] == '/' || text[0] == '_') &&
               std::find(std::begin(kReserved), std::end(kReserved), lower) == std::end(kReserved);
  for (char c : text)
    plain =
        plain && (absl::ascii_isalnum(c) || absl::StrContains("_./-+", absl::string_view(&c, 1)));
  if (plain) return std::string(text);
  std::string quoted = "\"";
  for (unsigned char c : text) {
    if (c == '"' || c == '\\') {
      absl::StrAppend(&quoted, "\\", std::string(1, c));
    } else if (c == '\n') {
      quoted += "\\n";
    } else if (c < 0x20 || c == 0x7F) {
      absl::StrAppendFormat(&quoted, "\\x%02x", c);
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

}  // namespace shoal
