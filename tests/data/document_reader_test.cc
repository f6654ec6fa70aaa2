#include "data/document_reader.h"

#include <gmock/gmock.h>

#include "core/status.h"
#include "tests/data/test_files.h"

namespace shoal {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

DataSource Source(const std::string& path) {
  DataSource source;
  source.set_path(path);
  return source;
}

absl::StatusOr<std::vector<std::string>> ReadAll(const DataSource& source) {
  std::vector<std::string> documents;
  SHOAL_ASSIGN_OR_RETURN(const auto files, ListSourceFiles(source));
  for (const SourceFile& file : files) {
    SHOAL_ASSIGN_OR_RETURN(DocumentReader reader, DocumentReader::Open(source, file));
    for (DocumentPart part;;) {
      SHOAL_ASSIGN_OR_RETURN(const bool found, reader.Next(part));
      if (!found) break;
      documents.push_back(part.text);
    }
  }
  return documents;
}

std::string Refusal(const DataSource& source) {
  return std::string(ReadAll(source).status().message());
}

TEST(DocumentReaderTest, AFileOfTextIsADocumentAsItIs) {
  const TestFolder folder;
  EXPECT_THAT(*ReadAll(Source(folder.Write("a.txt", "one\r\n\n two"))),
              ElementsAre("one\r\n\n two"));
  EXPECT_THAT(*ReadAll(Source(folder.Write("a.txt", ""))), IsEmpty());
}

TEST(DocumentReaderTest, SeparatorEndsDocuments) {
  const TestFolder folder;
  DataSource source = Source(folder.Write("a.txt", "---\na\n---\r\n---\nb\n --- \n---"));
  source.set_document_separator("---");
  EXPECT_THAT(*ReadAll(source), ElementsAre("a\n", "b\n --- \n"));
}

TEST(DocumentReaderTest, JsonLinesNameTheBadLine) {
  const TestFolder folder;
  const auto write = [&](const std::string& text) { return Source(folder.Write("a.jsonl", text)); };
  EXPECT_THAT(
      *ReadAll(write("{\"text\": \"a\\nb\"}\n\n  \n{\"text\": \"\"}\n{\"text\": \"é\", \"x\": 1}")),
      ElementsAre("a\nb", "é"));
  EXPECT_THAT(Refusal(write("{\"text\": \"a\"}\n{\"text\": \n")),
              HasSubstr("a.jsonl:2: not a line of JSON"));
  EXPECT_THAT(Refusal(write("[1]")), HasSubstr("a.jsonl:1: expected a JSON object, got array"));
  EXPECT_THAT(Refusal(write("{\"body\": \"a\"}")),
              HasSubstr("a.jsonl:1: there is no field \"text\""));
  EXPECT_THAT(Refusal(write("\n{\"text\": 3}")),
              HasSubstr("a.jsonl:2: field \"text\": expected a string, got number"));
  DataSource source = write("{\"body\": \"a\"}");
  source.set_field("body");
  EXPECT_THAT(*ReadAll(source), ElementsAre("a"));
}

TEST(DocumentReaderTest, FoldersAndPatternsAreReadInNameOrder) {
  const TestFolder folder;
  folder.Write("b.txt", "b");
  folder.Write("a/2.md", "a2");
  folder.Write("a/1.txt", "a1");
  folder.Write("a/.hidden", "no");
  folder.Write("c.txt", "c");
  EXPECT_THAT(*ReadAll(Source(folder.path())), ElementsAre("a1", "a2", "b", "c"));
  EXPECT_THAT(*ReadAll(Source(folder.Path("?.txt"))), ElementsAre("b", "c"));
  EXPECT_THAT(*ReadAll(Source(folder.Path("*/*.md"))), ElementsAre("a2"));
  EXPECT_EQ(ReadAll(Source(folder.Path("nothing*"))).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReadAll(Source(folder.Path("nothing.txt"))).status().code(),
            absl::StatusCode::kNotFound);
  folder.Write("d.pdf", "x");
  EXPECT_THAT(Refusal(Source(folder.path())),
              HasSubstr("d.pdf: the ending does not say the format"));
}

TEST(DocumentReaderTest, LongTextComesInPartsThatJoinToIt) {
  const TestFolder folder;
  std::string text;
  while (text.size() < (size_t{33} << 20))
    text += "word word, word.\n\n  indented\nnext line of words\n";
  const DataSource source = Source(folder.Write("a.txt", text));
  auto reader = DocumentReader::Open(source, {source.path(), DataSource::text});
  DocumentPart first, second, none;
  ASSERT_TRUE(*reader->Next(first) && *reader->Next(second) && !*reader->Next(none));
  EXPECT_TRUE(first.text + second.text == text);
  EXPECT_FALSE(first.ends_document || first.continues);
  EXPECT_TRUE(second.ends_document && second.continues);
  EXPECT_EQ(first.text.back(), '\n');
}

}  // namespace
}  // namespace shoal
