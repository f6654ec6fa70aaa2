#include "models/json.h"

#include <set>
#include <stdexcept>
#include <vector>

namespace shoal {
namespace {

constexpr int kMaxDepth = 32;

struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace

absl::StatusOr<Json> ParseJson(const std::string& text, const std::string& name) {
  std::vector<std::set<std::string>> open_objects;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > kMaxDepth)
      throw Refused(absl::StrCat("more than ", kMaxDepth, " levels of nesting"));
    if (event == Json::parse_event_t::object_start) open_objects.emplace_back();
    if (event == Json::parse_event_t::object_end) open_objects.pop_back();
    if (event == Json::parse_event_t::key) {
      const std::string key = parsed.get<std::string>();
      if (!open_objects.back().insert(key).second)
        throw Refused(absl::StrCat("key \"", key, "\" is given twice"));
    }
    return true;
  };
  try {
    return Json::parse(text, watch);
  } catch (const Refused& error) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": ", error.what()));
  } catch (const nlohmann::json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(name, " is not valid JSON: ", error.what()));
  }
}

absl::StatusOr<Json> ReadJsonFile(FileSystem& files, const std::string& path, int64_t max_bytes) {
  SHOAL_ASSIGN_OR_RETURN(const std::string text, ReadFile(files, path, max_bytes));
  return ParseJson(text, path);
}

Json* FindGiven(Json& object, const std::string& key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

std::string ShowJson(const Json& value) {
  const std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  return text.size() <= 60 ? text : absl::StrCat(text.substr(0, 57), "...");
}

}  // namespace shoal
