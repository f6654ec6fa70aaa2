#include "data/regex_translation.h"

#include <gmock/gmock.h>

#include "data/split_pattern.h"

namespace shoal {
namespace {

std::vector<std::string> Matches(absl::string_view pattern, absl::string_view text) {
  const auto compiled = CompilePattern(pattern);
  EXPECT_TRUE(compiled.ok()) << pattern << ": " << compiled.status();
  std::vector<Span> spans;
  EXPECT_TRUE((*compiled)->FindAll(text, spans).ok());
  std::vector<std::string> out;
  for (const Span& span : spans) out.emplace_back(text.substr(span.begin, span.end - span.begin));
  return out;
}

using ::testing::ElementsAre;

// Where Oniguruma and PCRE2 differ, Oniguruma's meaning is kept.
TEST(RegexTranslationTest, KeepsOnigurumasMeaning) {
  EXPECT_THAT(Matches(R"(\p{N}{1,3}+)", "1234567"), ElementsAre("1234567"));
  EXPECT_THAT(Matches(R"(\h+)", "xyz 0fA"), ElementsAre("0fA"));
  EXPECT_THAT(Matches(R"(^b)", "a\nb"), ElementsAre("b"));
  EXPECT_THAT(Matches(R"(a$)", "a\nb"), ElementsAre("a"));
  EXPECT_THAT(Matches(R"(.+)", "a\nb"), ElementsAre("a", "b"));
  EXPECT_THAT(Matches(R"((?i:'s))", "'\u017f"), ElementsAre("'\u017f"));
  EXPECT_THAT(Matches(R"(\w+)", "e\u0301!"), ElementsAre("e\u0301"));
  EXPECT_THAT(Matches(R"([\w&&[^a-c]]+)", "abcdef"), ElementsAre("def"));
  EXPECT_THAT(Matches(R"(a{,2}b)", "aab"), ElementsAre("aab"));
}

TEST(RegexTranslationTest, RefusesWhatItCannotPromise) {
  for (const char* pattern : {R"((a)\1)",
                              R"(\X)",
                              R"(\R)",
                              R"(\G)",
                              R"(\p{Han})",
                              R"([[:punct:]])",
                              R"((?m)a)",
                              R"((?<n>a))",
                              R"(a{2}?)",
                              R"(a**)",
                              R"(*a)",
                              "(",
                              ")",
                              "[",
                              "[]",
                              "\\",
                              R"((?i:straSSe))",
                              R"(\x80)",
                              R"(\x{110000})",
                              "[z-a]",
                              R"((?#c))",
                              R"(\Qa)",
                              R"(\pL)"}) {
    EXPECT_FALSE(CompilePattern(pattern).ok()) << pattern;
  }
  EXPECT_FALSE(CompilePattern(std::string(200, '(') + std::string(200, ')')).ok());
  EXPECT_FALSE(CompilePattern(std::string(20000, 'a')).ok());
}

}  // namespace
}  // namespace shoal
