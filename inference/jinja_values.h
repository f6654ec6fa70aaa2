// Running parsed Jinja templates. Reached through chat_template.h.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "inference/jinja_syntax.h"

namespace shoal::jinja {

// What an expression gives: JSON, nothing at all, or a namespace that statements write to.
struct Value {
  Json json;
  bool defined = true;
  std::shared_ptr<std::map<std::string, Value>> space;

  static Value Undefined() { return {.json = {}, .defined = false, .space = {}}; }
};

bool IsTrue(const Value& value);
// As Python's str() prints it. Error: lists, objects and namespaces.
std::string Print(const Value& value);
// As json.dumps(value, ensure_ascii=False, indent=indent) prints it; indent < 0: none.
std::string Dump(const Json& json, int indent, int depth = 0);
// Python's ==, <, in.
bool Equal(const Value& a, const Value& b);
bool Less(const Value& a, const Value& b);
bool Contains(const Value& container, const Value& item);
Value Add(const Value& a, const Value& b);
Value Arithmetic(const std::string& sign, const Value& a, const Value& b);

// object.name, object[key] (negative keys count from the end), object[first:last:step].
Value Member(const Value& object, const Value& key);
Value Slice(const Value& object, const Value& first, const Value& last, const Value& step);

struct Arguments {
  std::vector<Value> values;
  std::map<std::string, Value> named;

  // Argument `place`, by its place or name; else `otherwise`.
  Value Get(size_t place, const std::string& name, Value otherwise) const;
};
Value ApplyFilter(const std::string& name, const Value& value, const Arguments& arguments);
bool ApplyTest(const std::string& name, const Value& value, const Arguments& arguments);
Value CallMethod(const Value& object, const std::string& name, const Arguments& arguments);

}  // namespace shoal::jinja
