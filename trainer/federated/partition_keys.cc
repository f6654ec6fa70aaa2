#include "trainer/federated/partition_keys.h"

#include <algorithm>
#include <utility>

#include "core/nearest_name.h"

namespace shoal {
namespace {

constexpr int64_t kMostBytes = int64_t{4} << 30;

absl::Status ErrorAt(const std::string& path, int64_t line, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ":", line, ": ", what));
}

// The value that follows "did you mean", or nothing.
std::string Hint(const std::string& name, const std::vector<std::string>& names) {
  const std::string nearest = NearestName(name, names);
  return nearest.empty() ? "" : absl::StrCat(", did you mean \"", nearest, "\"?");
}

// The records of a CSV text, one after another.
class CsvReader {
 public:
  CsvReader(std::string path, std::string text) : path_(std::move(path)), text_(std::move(text)) {}

  bool AtEnd() const { return at_ >= text_.size(); }
  int64_t line() const { return line_; }  // Of the record read last

  absl::Status Next(std::vector<std::string>& fields) {
    line_ = next_line_;
    fields.assign(1, "");
    while (at_ < text_.size()) {
      const char c = text_[at_++];
      if (c == '"' && fields.back().empty()) {
        SHOAL_RETURN_IF_ERROR(ReadQuoted(fields.back()));
      } else if (c == ',') {
        fields.emplace_back();
      } else if (c == '\n') {
        ++next_line_;
        break;
      } else if (c != '\r' || (at_ < text_.size() && text_[at_] != '\n')) {
        fields.back() += c;
      }
    }
    return absl::OkStatus();
  }

 private:
  // After the opening quote, to behind the closing one.
  absl::Status ReadQuoted(std::string& field) {
    while (at_ < text_.size()) {
      const char c = text_[at_++];
      if (c == '\n') ++next_line_;
      if (c != '"') {
        field += c;
      } else if (at_ < text_.size() && text_[at_] == '"') {
        field += text_[at_++];
      } else {
        return absl::OkStatus();
      }
    }
    return ErrorAt(path_, line_, "a quoted field is not closed");
  }

  std::string path_, text_;
  size_t at_ = 0;
  int64_t line_ = 1, next_line_ = 1;
};

}  // namespace

absl::StatusOr<std::vector<std::string>> ReadCsvColumn(FileSystem& files, const std::string& path,
                                                       const std::string& column) {
  SHOAL_ASSIGN_OR_RETURN(std::string text, ReadFile(files, path, kMostBytes));
  CsvReader reader(path, std::move(text));
  std::vector<std::string> names, fields, keys;
  SHOAL_RETURN_IF_ERROR(reader.Next(names));
  const auto found = std::find(names.begin(), names.end(), column);
  if (found == names.end()) {
    return ErrorAt(path, 1, absl::StrCat("no column \"", column, "\"", Hint(column, names)));
  }
  while (!reader.AtEnd()) {
    SHOAL_RETURN_IF_ERROR(reader.Next(fields));
    if (fields.size() == 1 && fields[0].empty() && names.size() > 1) continue;  // A blank line
    if (fields.size() != names.size()) {
      return ErrorAt(path, reader.line(),
                     absl::StrCat(fields.size(), " fields, the first line has ", names.size()));
    }
    keys.push_back(std::move(fields[found - names.begin()]));
  }
  return keys;
}

}  // namespace shoal
