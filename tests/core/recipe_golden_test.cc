// tests/core/bad_recipes/NNN_what.yaml: a recipe that is wrong in one way. Its last lines are
// comments:
// `#= key=value` an override, `#! 2:3: key: message` an error that it must give, exactly and in
// this order (the file's name before the place is left out; `#! @base/x.yaml:2:3: ...` stands for
// another file).
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "core/recipe.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;

constexpr char kFolder[] = "tests/core/bad_recipes";

std::vector<std::string> BadRecipes() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(kFolder)) {
    if (entry.path().extension() == ".yaml") names.push_back(entry.path().stem().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

struct Case {
  std::string text;
  std::vector<std::string> overrides;
  std::string want;
};

Case ReadCase(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream bytes;
  bytes << file.rdbuf();
  Case result;
  std::vector<std::string> want;
  std::vector<std::string> text;
  for (const std::string& line : std::vector<std::string>(absl::StrSplit(bytes.str(), '\n'))) {
    if (absl::StartsWith(line, "#= ")) {
      result.overrides.push_back(line.substr(3));
    } else if (absl::StartsWith(line, "#! @")) {
      want.push_back(absl::StrCat(kFolder, "/", line.substr(4)));
    } else if (absl::StartsWith(line, "#! command line")) {
      want.push_back(line.substr(3));
    } else if (absl::StartsWith(line, "#! ")) {
      want.push_back(absl::StrCat(path, ":", line.substr(3)));
    } else {
      text.push_back(line);
    }
  }
  result.text = absl::StrJoin(text, "\n");
  result.want = absl::StrJoin(want, "\n");
  return result;
}

class BadRecipeTest : public testing::TestWithParam<std::string> {};

TEST_P(BadRecipeTest, GivesExactlyItsErrors) {
  const std::string path = absl::StrCat(kFolder, "/", GetParam(), ".yaml");
  const Case bad = ReadCase(path);
  const absl::StatusOr<LoadedRecipe> recipe = ParseRecipe(bad.text, path, bad.overrides);
  ASSERT_FALSE(recipe.ok()) << path << " loads, but it is wrong";
  EXPECT_EQ(recipe.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(recipe.status().message(), bad.want);
}

INSTANTIATE_TEST_SUITE_P(Golden, BadRecipeTest, testing::ValuesIn(BadRecipes()),
                         [](const auto& info) { return absl::StrCat("r", info.param); });

TEST(BadRecipeFolder, IsThere) { EXPECT_GE(BadRecipes().size(), 100u); }

}  // namespace
}  // namespace shoal
