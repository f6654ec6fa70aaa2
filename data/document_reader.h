// Documents from a recipe's data source, one after another, in bounded memory.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/recipe.pb.h"

namespace shoal {

struct SourceFile {
  std::string path;
  DataSource::Format format;  // Never auto_format
};

// The files of a source in the order they are read: `path` itself, the files of a folder and its
// folders in name order, or what a pattern (* and ? in any part of the path) matches, in name
// order. Names that start with a dot are passed over. Errors: NotFound if there is nothing;
// InvalidArgument if a file's ending does not say its format and the source does not either.
absl::StatusOr<std::vector<SourceFile>> ListSourceFiles(const DataSource& source);

// A document, or a part of one.
struct DocumentPart {
  std::string text;
  bool continues = false;  // Goes on from the part before
  bool ends_document = true;
};

// Reads one file of text or JSON lines. A document of text above 32 MiB comes in parts, cut after a
// line end between a character that is no space and a letter, where the supported tokenizers never
// join words.
class DocumentReader {
 public:
  static absl::StatusOr<DocumentReader> Open(const DataSource& source, const SourceFile& file);

  // False at the file's end. Errors name file and line: InvalidArgument for broken JSON, a missing
  // or non-text field; ResourceExhausted for a JSON line above 256 MiB. Empty documents are passed
  // over.
  absl::StatusOr<bool> Next(DocumentPart& part);

 private:
  DocumentReader() = default;
  absl::StatusOr<bool> NextJsonLine(DocumentPart& part);
  absl::StatusOr<bool> NextText(DocumentPart& part);
  // The next line with its line end; false at the end.
  absl::StatusOr<bool> ReadLine(std::string& line);

  DataSource source_;
  SourceFile file_;
  std::ifstream in_;
  int64_t line_ = 0;
  std::string pending_;  // Text read after where the last part was cut
  bool continues_ = false;
  bool at_end_ = false;
};

}  // namespace shoal
