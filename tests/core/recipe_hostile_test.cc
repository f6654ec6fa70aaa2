// No bytes can crash, hang or exhaust the loader.
#include <chrono>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "core/random.h"
#include "core/recipe.h"

namespace shoal {
namespace {

std::string Repeat(const std::string& text, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += text;
  return out;
}

// `line` on its own, indented one more each time.
std::string Staircase(const std::string& line, int steps) {
  std::string out;
  for (int i = 0; i < steps; ++i) absl::StrAppend(&out, std::string(i, ' '), line, "\n");
  return out;
}

struct HostileText {
  const char* name;
  std::string text;
};

std::vector<HostileText> HostileTexts() {
  std::string bomb = "a0: &a0 [x, x]\n";
  for (int i = 1; i < 30; ++i)
    absl::StrAppend(&bomb, "a", i, ": &a", i, " [*a", i - 1, ", *a", i - 1, "]\n");
  return {
      {"open brackets", Repeat("[", 100'000)},
      {"open braces", Repeat("{", 100'000)},
      {"open both", Repeat("[{", 50'000)},
      {"nested keys", Repeat("a: {", 50'000)},
      {"pairs in lists", Repeat("[a: ", 50'000)},
      {"dashes", Repeat("- ", 100'000)},
      {"question marks", Repeat("? ", 100'000)},
      {"dashes and question marks", Repeat("- ? ", 50'000)},
      {"question marks in braces", Repeat("{? ", 50'000)},
      {"deep keys", Staircase("a:", 1'400)},
      {"deep dashes", Staircase("-", 1'400)},
      {"alias bomb", bomb},
      {"alias of itself", "&a [*a]"},
      {"anchors", Repeat("&a x: y\n", 20'000)},
      {"aliases", absl::StrCat("[", Repeat("*a,", 50'000))},
      {"tags", Repeat("!", 100'000)},
      {"colons", Repeat(": ", 100'000)},
      {"closing brackets", Repeat("]", 100'000)},
      {"documents", Repeat("---\n", 50'000)},
      {"directives", Repeat("%TAG ! x\n", 50'000)},
      {"zero byte", std::string("run: {name: a\0b}", 16)},
      {"not UTF-8", "run: {name: \"\xC0\x80\"}"},
      {"cut UTF-8", "run: {name: \xE2\x82"},
      {"UTF-16", std::string("\xFF\xFEr\0u\0n\0", 8)},
      {"long text", absl::StrCat("run: {name: ", std::string(1'000'000, 'x'), "}")},
      {"long quotes", absl::StrCat("run: {name: '", Repeat("''", 400'000), "'}")},
      {"long lines", absl::StrCat("run:\n  name: b\n", Repeat("   c\n", 150'000))},
      {"long key", absl::StrCat(std::string(500'000, 'k'), ": 1")},
      {"many keys",
       [] {
         std::string text;
         for (int i = 0; i < 50'000; ++i) absl::StrAppend(&text, "k", i, ": 1\n");
         return text;
       }()},
      {"many entries", absl::StrCat("sample: {prompts: [", Repeat("a,", 300'000), "]}")},
      {"too many bytes", std::string(2'000'000, '#')},
      {"references", absl::StrCat("run: {name: \"", Repeat("${optimizer.name}", 30'000), "\"}")},
      {"references of references",
       absl::StrCat("run: {name: \"", Repeat("${model.family_file}", 100),
                    "\"}\nmodel: {family_file: \"", Repeat("${tokenizer.name_or_path}", 100),
                    "\"}\ntokenizer: {name_or_path: \"", Repeat("${model.name_or_path}", 100),
                    "\"}")},
  };
}

TEST(HostileRecipe, IsRefusedQuicklyWithoutACrash) {
  for (const HostileText& hostile : HostileTexts()) {
    SCOPED_TRACE(hostile.name);
    const auto start = std::chrono::steady_clock::now();
    const absl::StatusOr<LoadedRecipe> recipe = ParseRecipe(hostile.text, "hostile.yaml");
    EXPECT_FALSE(recipe.ok());
    EXPECT_LT(recipe.status().message().size(), 100'000u);
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(30));
  }
}

TEST(HostileRecipe, OverridesAreAsSafe) {
  for (const HostileText& hostile : HostileTexts()) {
    SCOPED_TRACE(hostile.name);
    const std::string text = hostile.text.substr(0, 50'000);
    for (const char* key :
         {"", "run.name=", "model.config=", "sample.prompts=", "model.config.a.b="}) {
      (void)ParseRecipe("", "hostile.yaml", {absl::StrCat(key, text)});
    }
  }
}

constexpr char kSeedRecipe[] = R"(version: 1
run: {name: "a ${optimizer.name}", seed: 7}
model:
  config: {model_type: llama, hidden_size: 64, rope_theta: 1e4, tie: false, list: [1, 2.5, "x", null]}
tokenizer:
  train: {special_tokens: ["<eos>"]}
data:
  train:
    - path: corpus.txt
    - {path: more.jsonl, field: "te\"xt"}
lr: 3e-4
training:
  max_steps: 20
scheduler: {type: cosine, warmup_steps: 0.1}
zero:
  stage: 3
sample:
  prompts: [Once, "upon: a\ttime", 'é ''quoted''']
)";

// An accepted recipe printed and read again is the same recipe.
void ExpectRoundTrip(const LoadedRecipe& recipe, const std::string& text) {
  const std::string printed = recipe.ResolvedYaml();
  const absl::StatusOr<LoadedRecipe> again = ParseRecipe(printed, "printed.yaml");
  ASSERT_TRUE(again.ok()) << again.status().message() << "\nfrom\n" << text << "\nas\n" << printed;
  ASSERT_EQ(again->ResolvedYaml(), printed) << "from\n" << text;
  ASSERT_EQ(again->Hash(), recipe.Hash());
}

// Replaces, inserts, deletes or doubles a piece of the text.
std::string Mutated(std::string text, const Philox& random, uint64_t index) {
  static const std::vector<std::string> kPieces = {
      ": ", "- ",  "\n",    "  ", "{",           "}",    "[",          "]",
      ",",  "\"",  "'",     "#",  "&a ",         "*a",   "!t ",        "|",
      ">",  "?",   "%",     "${", "}",           "null", "~",          "1e9",
      "-1", ".5",  "0x1",   "\t", "\xC3\xA9",    "\xFF", "extends: x", "training",
      "<<", "...", "---\n", "\\", "\xE2\x80\xA8"};
  const int edits = 1 + random.Bits(index * 64) % 4;
  for (int edit = 0; edit < edits; ++edit) {
    const auto draw = [&](int k) { return random.Bits(index * 64 + 1 + edit * 4 + k); };
    const size_t at = draw(0) % (text.size() + 1);
    const size_t length = draw(1) % 12;
    const std::string& piece = kPieces[draw(2) % kPieces.size()];
    switch (draw(3) % 4) {
      case 0:
        text.insert(at, piece);
        break;
      case 1:
        text.erase(at, length);
        break;
      case 2:
        text.replace(at, std::min(length, text.size() - at), piece);
        break;
      default:
        text.insert(at, text.substr(at, length * 4));
    }
  }
  return text;
}

TEST(RecipeFuzz, MutationsNeitherCrashNorLoseAnything) {
  const Philox random(2026, StreamId("recipe fuzz"));
  int accepted = 0;
  for (uint64_t i = 0; i < 3'000 && !HasFatalFailure(); ++i) {
    const std::string text = Mutated(kSeedRecipe, random, i);
    const absl::StatusOr<LoadedRecipe> recipe = ParseRecipe(text, "fuzz.yaml");
    if (!recipe.ok()) continue;
    ++accepted;
    ExpectRoundTrip(*recipe, text);
  }
  EXPECT_GT(accepted, 100) << "the mutations should leave some recipes valid";
}

TEST(RecipeFuzz, RandomBytes) {
  const Philox random(2026, StreamId("recipe bytes"));
  static constexpr char kAlphabet[] = " \n:-?{}[],&*!|>'\"%#@`\\ab01.~<$";
  for (uint64_t i = 0; i < 2'000; ++i) {
    std::string text;
    const size_t length = random.Bits(i * 128) % 100;
    for (size_t k = 0; k < length; ++k)
      text += kAlphabet[random.Bits(i * 128 + 1 + k) % (sizeof(kAlphabet) - 1)];
    (void)ParseRecipe(text, "bytes.yaml");
    (void)ParseRecipe("", "bytes.yaml", {absl::StrCat("model.config.a=", text)});
  }
}

}  // namespace
}  // namespace shoal
