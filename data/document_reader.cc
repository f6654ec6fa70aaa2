#include "data/document_reader.h"

#include <glob.h>

#include <algorithm>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "core/status.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;

constexpr size_t kPartBytes = size_t{32} << 20;
constexpr size_t kMaxLineBytes = size_t{256} << 20;

absl::StatusOr<DataSource::Format> FormatOf(const DataSource& source, const std::string& path) {
  if (source.format() != DataSource::auto_format) return source.format();
  if (absl::EndsWith(path, ".txt") || absl::EndsWith(path, ".md")) return DataSource::text;
  if (absl::EndsWith(path, ".jsonl")) return DataSource::jsonl;
  if (absl::EndsWith(path, ".bin") || absl::EndsWith(path, ".json")) return DataSource::tokens;
  return absl::InvalidArgumentError(
      absl::StrCat(path,
                   ": the ending does not say the format (.txt, .md, .jsonl, .bin, .json): set "
                   "`format` of the data source"));
}

// Files below `folder`, in name order, folders and files alike.
absl::Status ListFolder(const fs::path& folder, std::vector<std::string>& out) {
  std::error_code error;
  std::vector<fs::path> entries;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (it->path().filename().native()[0] != '.') entries.push_back(it->path());
  }
  if (error) return absl::UnavailableError(absl::StrCat(folder.string(), ": ", error.message()));
  std::sort(entries.begin(), entries.end());
  for (const fs::path& entry : entries) {
    if (fs::is_directory(fs::symlink_status(entry, error))) {
      SHOAL_RETURN_IF_ERROR(ListFolder(entry, out));
    } else if (fs::is_regular_file(entry, error)) {
      out.push_back(entry.string());
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> ExpandPattern(const std::string& pattern) {
  glob_t found{};
  const int result = glob(pattern.c_str(), 0, nullptr, &found);  // Sorted by name
  std::vector<std::string> paths(found.gl_pathv,
                                 found.gl_pathv + (result == 0 ? found.gl_pathc : 0));
  globfree(&found);
  if (result != 0 && result != GLOB_NOMATCH)
    return absl::UnavailableError(absl::StrCat(pattern, ": cannot be expanded"));
  if (paths.empty())
    return absl::NotFoundError(absl::StrCat(pattern, ": no file matches this data source"));
  return paths;
}

}  // namespace

absl::StatusOr<std::vector<SourceFile>> ListSourceFiles(const DataSource& source) {
  std::vector<std::string> roots = {source.path()};
  std::error_code error;
  if (!fs::exists(source.path(), error)) {
    if (source.path().find_first_of("*?") == std::string::npos) {
      return absl::NotFoundError(
          absl::StrCat(source.path(), ": there is no such file or folder (a data source)"));
    }
    SHOAL_ASSIGN_OR_RETURN(roots, ExpandPattern(source.path()));
  }
  std::vector<SourceFile> files;
  for (const std::string& root : roots) {
    std::vector<std::string> paths;
    if (fs::is_directory(root, error)) {
      SHOAL_RETURN_IF_ERROR(ListFolder(root, paths));
    } else {
      paths.push_back(root);
    }
    for (std::string& path : paths) {
      SHOAL_ASSIGN_OR_RETURN(const DataSource::Format format, FormatOf(source, path));
      files.push_back({std::move(path), format});
    }
  }
  if (files.empty())
    return absl::NotFoundError(
        absl::StrCat(source.path(), ": the folder holds no files (a data source)"));
  return files;
}

absl::StatusOr<DocumentReader> DocumentReader::Open(const DataSource& source,
                                                    const SourceFile& file) {
  SHOAL_CHECK(file.format == DataSource::text || file.format == DataSource::jsonl)
      << file.path << " holds no text";
  DocumentReader reader;
  reader.source_ = source;
  reader.file_ = file;
  reader.in_.open(file.path, std::ios::binary);
  if (!reader.in_) return absl::NotFoundError(absl::StrCat(file.path, ": cannot be opened"));
  return reader;
}

absl::StatusOr<bool> DocumentReader::Next(DocumentPart& part) {
  part = DocumentPart();
  return file_.format == DataSource::jsonl ? NextJsonLine(part) : NextText(part);
}

absl::StatusOr<bool> DocumentReader::ReadLine(std::string& line) {
  line.clear();
  if (!std::getline(in_, line)) {
    if (in_.bad())
      return absl::UnavailableError(
          absl::StrCat(file_.path, ": reading failed after line ", line_));
    return false;
  }
  ++line_;
  if (!in_.eof()) line += '\n';
  return true;
}

absl::StatusOr<bool> DocumentReader::NextJsonLine(DocumentPart& part) {
  std::string line;
  while (part.text.empty()) {
    SHOAL_ASSIGN_OR_RETURN(const bool found, ReadLine(line));
    if (!found) return false;
    const auto error = [&](absl::string_view what) {
      return absl::InvalidArgumentError(absl::StrCat(file_.path, ":", line_, ": ", what));
    };
    if (line.size() > kMaxLineBytes) {
      return absl::ResourceExhaustedError(absl::StrCat(
          file_.path, ":", line_, ": a line of ", line.size(), " bytes, at most ", kMaxLineBytes));
    }
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    const nlohmann::json json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (json.is_discarded()) return error("not a line of JSON");
    if (!json.is_object())
      return error(absl::StrCat("expected a JSON object, got ", json.type_name()));
    const auto field = json.find(source_.field());
    if (field == json.end())
      return error(absl::StrCat("there is no field \"", source_.field(),
                                "\" (see `field` of the data source)"));
    if (!field->is_string()) {
      return error(absl::StrCat("field \"", source_.field(), "\": expected a string, got ",
                                field->type_name()));
    }
    part.text = field->get<std::string>();
  }
  return true;
}

absl::StatusOr<bool> DocumentReader::NextText(DocumentPart& part) {
  part.continues = continues_;
  part.text.swap(pending_);
  pending_.clear();
  std::string line;
  while (!at_end_) {
    SHOAL_ASSIGN_OR_RETURN(const bool found, ReadLine(line));
    if (!found) {
      at_end_ = true;
      break;
    }
    const bool separator =
        source_.has_document_separator() && !source_.document_separator().empty() &&
        absl::StripSuffix(absl::StripSuffix(line, "\n"), "\r") == source_.document_separator();
    if (separator) {
      if (part.text.empty() && !part.continues) continue;
      continues_ = false;
      return true;
    }
    const size_t size = part.text.size();
    const bool may_cut = size >= 2 && part.text[size - 1] == '\n' &&
                         absl::ascii_isgraph(part.text[size - 2]) && absl::ascii_isalpha(line[0]);
    if (size >= kPartBytes && (may_cut || size >= 8 * kPartBytes)) {
      pending_ = std::move(line);
      part.ends_document = false;
      continues_ = true;
      return true;
    }
    part.text += line;
  }
  const bool some = !part.text.empty() || part.continues;
  continues_ = false;
  return some;
}

}  // namespace shoal
