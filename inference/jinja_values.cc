#include "inference/jinja_values.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

namespace shoal::jinja {
namespace {

Value Of(Json json) { return {.json = std::move(json), .defined = true, .space = {}}; }

const std::string& Text(const Value& value, const std::string& what) {
  if (!value.defined || !value.json.is_string())
    throw Error(absl::StrCat(what, ": expected a text, got ",
                             value.defined ? value.json.type_name() : "nothing"));
  return value.json.get_ref<const std::string&>();
}

int64_t Whole(const Value& value, const std::string& what) {
  if (!value.defined || !(value.json.is_number_integer() || value.json.is_boolean()))
    throw Error(absl::StrCat(what, ": expected a whole number"));
  return value.json.is_boolean() ? value.json.get<bool>() : value.json.get<int64_t>();
}

// The characters of UTF-8, a string each.
std::vector<std::string> Characters(const std::string& text) {
  std::vector<std::string> characters;
  for (char c : text) {
    if ((c & 0xC0) == 0x80 && !characters.empty())
      characters.back() += c;
    else
      characters.emplace_back(1, c);
  }
  return characters;
}

std::string Strip(const std::string& text, const std::string& characters, bool front, bool back) {
  size_t begin = 0, end = text.size();
  if (front) begin = std::min(text.find_first_not_of(characters), text.size());
  if (back) end = text.find_last_not_of(characters) + 1;
  return begin < end ? text.substr(begin, end - begin) : "";
}

const char kWhiteSpace[] = " \t\n\r\v\f";

std::string Title(const std::string& text, bool every_word) {
  std::string result = absl::AsciiStrToLower(text);
  bool first = true;
  for (char& c : result) {
    if (first) c = absl::ascii_toupper(c);
    first = every_word && !absl::ascii_isalpha(c);
  }
  return result;
}

Json Items(const Json& object) {
  Json items = Json::array();
  for (const auto& [key, value] : object.items()) items.push_back(Json::array({key, value}));
  return items;
}

int64_t Length(const Value& value) {
  if (value.json.is_string()) return static_cast<int64_t>(Characters(value.json).size());
  if (value.json.is_array() || value.json.is_object())
    return static_cast<int64_t>(value.json.size());
  throw Error(absl::StrCat("length: ", value.json.type_name(), " has none"));
}

Json Elements(const Value& value, const std::string& what) {
  if (value.json.is_array()) return value.json;
  if (value.json.is_string()) return Json(Characters(value.json));
  Json keys = Json::array();
  if (!value.json.is_object()) throw Error(absl::StrCat(what, ": expected a list"));
  for (const auto& [key, element] : value.json.items()) keys.push_back(key);
  return keys;
}

std::string Quoted(const std::string& text) {
  return Json(text).dump(-1, ' ', /*ensure_ascii=*/false);
}

}  // namespace

bool IsTrue(const Value& value) {
  if (value.space) return true;
  if (!value.defined || value.json.is_null()) return false;
  if (value.json.is_boolean()) return value.json.get<bool>();
  if (value.json.is_number()) return value.json.get<double>() != 0;
  if (value.json.is_string()) return !value.json.get_ref<const std::string&>().empty();
  return !value.json.empty();
}

std::string Print(const Value& value) {
  if (!value.defined) return "";
  if (value.json.is_string()) return value.json;
  if (value.json.is_null()) return "None";
  if (value.json.is_boolean()) return value.json.get<bool>() ? "True" : "False";
  if (value.json.is_number()) return value.json.dump();
  throw Error(absl::StrCat("a ", value.space ? "namespace" : value.json.type_name(),
                           " cannot be printed: use the filter tojson"));
}

std::string Dump(const Json& json, int indent, int depth) {
  if (json.is_string()) return Quoted(json);
  if (!json.is_array() && !json.is_object()) return json.dump();
  const bool is_array = json.is_array();
  if (json.empty()) return is_array ? "[]" : "{}";
  std::vector<std::string> parts;
  for (const auto& [key, element] : json.items()) {
    const std::string text = Dump(element, indent, depth + 1);
    parts.push_back(is_array ? text : absl::StrCat(Quoted(key), ": ", text));
  }
  const auto margin = [&](int levels) {
    return indent < 0 ? std::string() : "\n" + std::string(indent * levels, ' ');
  };
  return absl::StrCat(is_array ? "[" : "{", margin(depth + 1),
                      absl::StrJoin(parts, indent < 0 ? ", " : "," + margin(depth + 1)),
                      margin(depth), is_array ? "]" : "}");
}

bool Equal(const Value& a, const Value& b) {
  if (!a.defined || !b.defined) return a.defined == b.defined;
  if (a.json.is_boolean() && b.json.is_number()) return a.json.get<bool>() == b.json.get<double>();
  if (b.json.is_boolean() && a.json.is_number()) return Equal(b, a);
  return a.json == b.json;
}

bool Less(const Value& a, const Value& b) {
  if (a.json.is_number() && b.json.is_number()) return a.json.get<double>() < b.json.get<double>();
  return Text(a, "<") < Text(b, "<");
}

bool Contains(const Value& container, const Value& item) {
  if (!container.defined) return false;
  if (container.json.is_string()) return absl::StrContains(Text(container, "in"), Text(item, "in"));
  if (container.json.is_object())
    return item.json.is_string() && container.json.contains(item.json.get<std::string>());
  if (!container.json.is_array()) throw Error("in: expected a list, an object or a text");
  return std::any_of(container.json.begin(), container.json.end(),
                     [&](const Json& each) { return Equal(Of(each), item); });
}

Value Add(const Value& a, const Value& b) {
  if (a.json.is_string() && b.json.is_string()) return Of(Text(a, "+") + Text(b, "+"));
  if (a.json.is_array() && b.json.is_array()) {
    Json sum = a.json;
    sum.insert(sum.end(), b.json.begin(), b.json.end());
    return Of(sum);
  }
  return Arithmetic("+", a, b);
}

Value Arithmetic(const std::string& sign, const Value& a, const Value& b) {
  const auto is_number = [](const Value& value) {
    return value.defined && (value.json.is_number() || value.json.is_boolean());
  };
  if (sign == "*" && a.json.is_string() && is_number(b)) {
    std::string repeated;
    for (int64_t i = 0; i < Whole(b, "*"); ++i) repeated += a.json.get_ref<const std::string&>();
    return Of(repeated);
  }
  if (!is_number(a) || !is_number(b))
    throw Error(absl::StrCat(sign, " between ", a.defined ? a.json.type_name() : "nothing", " and ",
                             b.defined ? b.json.type_name() : "nothing"));
  const auto number = [](const Value& value) {
    return value.json.is_boolean() ? double{value.json.get<bool>()} : value.json.get<double>();
  };
  if (sign == "/") return Of(number(a) / number(b));
  if (a.json.is_number_float() || b.json.is_number_float()) {
    const double x = number(a), y = number(b);
    return Of(sign == "+"    ? x + y
              : sign == "-"  ? x - y
              : sign == "*"  ? x * y
              : sign == "//" ? std::floor(x / y)
                             : x - y * std::floor(x / y));
  }
  const int64_t x = Whole(a, sign), y = Whole(b, sign);
  if (sign == "+") return Of(x + y);
  if (sign == "-") return Of(x - y);
  if (sign == "*") return Of(x * y);
  if (y == 0) throw Error("division by zero");
  const int64_t quotient = x / y - ((x % y != 0 && (x < 0) != (y < 0)) ? 1 : 0);
  return Of(sign == "//" ? quotient : x - y * quotient);
}

Value Member(const Value& object, const Value& key) {
  if (object.space) {
    const auto found = object.space->find(Text(key, "a namespace's attribute"));
    return found == object.space->end() ? Value::Undefined() : found->second;
  }
  if (!object.defined)
    throw Error(absl::StrCat("nothing has no ",
                             key.json.is_string() ? key.json.get<std::string>() : key.json.dump()));
  if (object.json.is_object()) {
    if (!key.json.is_string()) return Value::Undefined();
    const auto found = object.json.find(key.json.get<std::string>());
    return found == object.json.end() ? Value::Undefined() : Of(*found);
  }
  if ((object.json.is_array() || object.json.is_string()) && key.json.is_number_integer()) {
    const Json elements = Elements(object, "[]");
    const int64_t size = static_cast<int64_t>(elements.size());
    int64_t at = key.json.get<int64_t>();
    if (at < 0) at += size;
    return at < 0 || at >= size ? Value::Undefined() : Of(elements[at]);
  }
  return Value::Undefined();
}

Value Slice(const Value& object, const Value& first, const Value& last, const Value& step_value) {
  const Json elements = Elements(object, "[:]");
  const int64_t size = static_cast<int64_t>(elements.size());
  const int64_t step = step_value.defined ? Whole(step_value, "[:]") : 1;
  if (step == 0) throw Error("[:]: a step of 0");
  const auto bound = [&](const Value& value, int64_t otherwise) {
    if (!value.defined || value.json.is_null()) return otherwise;
    int64_t at = Whole(value, "[:]");
    if (at < 0) at += size;
    return step > 0 ? std::clamp<int64_t>(at, 0, size) : std::clamp<int64_t>(at, -1, size - 1);
  };
  Json part = Json::array();
  const int64_t end = bound(last, step > 0 ? size : -1);
  for (int64_t at = bound(first, step > 0 ? 0 : size - 1); step > 0 ? at < end : at > end;
       at += step)
    part.push_back(elements[at]);
  if (!object.json.is_string()) return Of(part);
  std::string text;
  for (const Json& character : part) text += character.get<std::string>();
  return Of(text);
}

Value Arguments::Get(size_t place, const std::string& name, Value otherwise) const {
  if (place < values.size()) return values[place];
  const auto found = named.find(name);
  return found == named.end() ? otherwise : found->second;
}

Value ApplyFilter(const std::string& name, const Value& value, const Arguments& arguments) {
  if (name == "default" || name == "d") {
    const bool also_false = IsTrue(arguments.Get(1, "boolean", Of(false)));
    const bool missing = also_false ? !IsTrue(value) : !value.defined;
    return missing ? arguments.Get(0, "default_value", Of("")) : value;
  }
  if (name == "length" || name == "count") return Of(Length(value));
  if (name == "trim") return Of(Strip(Print(value), kWhiteSpace, true, true));
  if (name == "upper") return Of(absl::AsciiStrToUpper(Print(value)));
  if (name == "lower") return Of(absl::AsciiStrToLower(Print(value)));
  if (name == "capitalize") return Of(Title(Print(value), false));
  if (name == "title") return Of(Title(Print(value), true));
  if (name == "string") return Of(Print(value));
  if (name == "safe") return value;
  if (name == "tojson") {
    const Value indent = arguments.Get(0, "indent", Value::Undefined());
    return Of(Dump(value.json, indent.defined && !indent.json.is_null()
                                   ? static_cast<int>(Whole(indent, "tojson"))
                                   : -1));
  }
  if (name == "first" || name == "last") {
    const Json elements = Elements(value, name);
    if (elements.empty()) return Value::Undefined();
    return Of(name == "first" ? elements.front() : elements.back());
  }
  if (name == "list") return Of(Elements(value, name));
  if (name == "items") return Of(Items(value.json));
  if (name == "join") {
    std::vector<std::string> parts;
    for (const Json& each : Elements(value, name)) parts.push_back(Print(Of(each)));
    return Of(absl::StrJoin(parts, Print(arguments.Get(0, "d", Of("")))));
  }
  if (name == "replace") return CallMethod(value, name, arguments);
  if (name == "int") {
    if (value.json.is_number()) return Of(static_cast<int64_t>(value.json.get<double>()));
    int64_t whole = 0;
    return Of(absl::SimpleAtoi(Print(value), &whole) ? whole : int64_t{0});
  }
  throw Error(absl::StrCat("the filter ", name, " is not supported"));
}

bool ApplyTest(const std::string& name, const Value& value, const Arguments& arguments) {
  if (name == "defined") return value.defined;
  if (name == "undefined") return !value.defined;
  const Json& json = value.json;
  if (name == "none") return value.defined && json.is_null();
  if (name == "string") return json.is_string();
  if (name == "mapping") return json.is_object();
  if (name == "sequence") return json.is_array() || json.is_string() || json.is_object();
  if (name == "iterable") return json.is_array() || json.is_string() || json.is_object();
  if (name == "number") return json.is_number();
  if (name == "integer") return json.is_number_integer();
  if (name == "boolean") return json.is_boolean();
  if (name == "true") return json.is_boolean() && json.get<bool>();
  if (name == "false") return json.is_boolean() && !json.get<bool>();
  if (name == "odd") return Whole(value, name) % 2 != 0;
  if (name == "even") return Whole(value, name) % 2 == 0;
  if (name == "equalto" || name == "eq")
    return Equal(value, arguments.Get(0, "other", Value::Undefined()));
  if (name == "in") return Contains(arguments.Get(0, "seq", Value::Undefined()), value);
  throw Error(absl::StrCat("the test ", name, " is not supported"));
}

Value CallMethod(const Value& object, const std::string& name, const Arguments& arguments) {
  const auto text_of = [&](size_t place) {
    return Text(arguments.Get(place, "", Value::Undefined()), name);
  };
  if (object.json.is_object()) {
    if (name == "items") return Of(Items(object.json));
    if (name == "keys") return Of(Elements(object, name));
    if (name == "values") {
      Json values = Json::array();
      for (const auto& [key, value] : object.json.items()) values.push_back(value);
      return Of(values);
    }
    if (name == "get") {
      const Value found = Member(object, arguments.Get(0, "key", Value::Undefined()));
      return found.defined ? found : arguments.Get(1, "default", Of(nullptr));
    }
  }
  if (object.json.is_string()) {
    const std::string& text = object.json.get_ref<const std::string&>();
    if (name == "strip" || name == "lstrip" || name == "rstrip") {
      const std::string characters = arguments.values.empty() ? kWhiteSpace : text_of(0);
      return Of(Strip(text, characters, name != "rstrip", name != "lstrip"));
    }
    if (name == "startswith") return Of(absl::StartsWith(text, text_of(0)));
    if (name == "endswith") return Of(absl::EndsWith(text, text_of(0)));
    if (name == "upper") return Of(absl::AsciiStrToUpper(text));
    if (name == "lower") return Of(absl::AsciiStrToLower(text));
    if (name == "title") return Of(Title(text, true));
    if (name == "capitalize") return Of(Title(text, false));
    if (name == "replace") return Of(absl::StrReplaceAll(text, {{text_of(0), text_of(1)}}));
    if (name == "find") {
      const size_t at = text.find(text_of(0));
      return Of(at == std::string::npos ? int64_t{-1} : static_cast<int64_t>(at));
    }
    if (name == "split") {
      std::vector<std::string> parts;
      if (arguments.values.empty()) {
        parts = absl::StrSplit(text, absl::ByAnyChar(kWhiteSpace), absl::SkipEmpty());
      } else {
        const Value most = arguments.Get(1, "maxsplit", Value::Undefined());
        if (most.defined)
          parts = absl::StrSplit(text, absl::MaxSplits(text_of(0), Whole(most, name)));
        else
          parts = absl::StrSplit(text, text_of(0));
      }
      return Of(Json(parts));
    }
  }
  throw Error(absl::StrCat("the method ", name, " is not supported"));
}

}  // namespace shoal::jinja
