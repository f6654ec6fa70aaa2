// JSON from files that are not trusted.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "core/file_system.h"
#include "core/status.h"

namespace shoal {

using Json = nlohmann::ordered_json;

// Parses `text`; `name` stands in errors. Refused: more than 32 levels, a key twice in one object,
// numbers beyond a double, bytes that are not UTF-8.
absl::StatusOr<Json> ParseJson(const std::string& text, const std::string& name);

// The same of a file of at most `max_bytes`.
absl::StatusOr<Json> ReadJsonFile(FileSystem& files, const std::string& path,
                                  int64_t max_bytes = 16 << 20);

// The value at `key`; nullptr if it is absent or null.
Json* FindGiven(Json& object, const std::string& key);

// The value as an error shows it: one line, at most 60 bytes.
std::string ShowJson(const Json& value);

}  // namespace shoal
