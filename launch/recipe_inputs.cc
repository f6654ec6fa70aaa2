#include "launch/recipe_inputs.h"

#include <glob.h>

#include <filesystem>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/nearest_name.h"
#include "models/adapters/adapter_folder.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;

bool Exists(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

// How many files a pattern with * and ? matches.
size_t CountMatches(const std::string& pattern) {
  glob_t matches = {};
  const bool found = glob(pattern.c_str(), GLOB_NOSORT, nullptr, &matches) == 0;
  const size_t count = found ? matches.gl_pathc : 0;
  globfree(&matches);
  return count;
}

class InputChecker {
 public:
  explicit InputChecker(const LoadedRecipe& recipe) : recipe_(recipe), proto_(recipe.proto) {}

  std::vector<RecipeError> Run() {
    Data(proto_.data().train(), "data.train");
    Data(proto_.data().eval(), "data.eval");
    Model();
    Tokenizer();
    Resume();
    return std::move(errors_);
  }

 private:
  void Error(const std::string& key, std::string message) {
    errors_.push_back({recipe_.OriginOf(key), key, std::move(message)});
  }

  template <typename Sources>
  void Data(const Sources& sources, const std::string& list) {
    for (int i = 0; i < sources.size(); ++i) {
      const std::string& path = sources[i].path();
      const std::string key = absl::StrCat(list, ".", i, ".path");
      const bool pattern = path.find_first_of("*?") != std::string::npos;
      if (pattern && CountMatches(path) == 0) Error(key, absl::StrCat("no file matches ", path));
      if (!pattern && !Exists(path))
        Error(key, absl::StrCat(path, " is not there, expected a file, a folder or a pattern"));
    }
  }

  void Model() {
    const std::string& family = proto_.model().family_file();
    if (!family.empty() && !Exists(family))
      Error("model.family_file", absl::StrCat(family, " is not there"));
    const std::string& folder = proto_.model().name_or_path();
    if (folder.empty()) return;
    if (!Exists(folder)) {
      return Error(
          "model.name_or_path",
          absl::StrCat(folder, " is not there, expected a Hugging Face folder on this machine"));
    }
    if (Exists(fs::path(folder) / kAdapterConfigName)) {
      // It names its base model's folder, which is read with it.
      if (!Exists(fs::path(folder) / kAdapterWeightsName))
        Error("model.name_or_path", absl::StrCat(folder, " holds no ", kAdapterWeightsName));
      return;
    }
    if (!Exists(fs::path(folder) / "config.json"))
      Error("model.name_or_path", absl::StrCat(folder, " holds no config.json"));
    const bool weights = Exists(fs::path(folder) / "model.safetensors") ||
                         Exists(fs::path(folder) / "model.safetensors.index.json");
    if (proto_.model().init() == ModelSection::pretrained && !weights) {
      Error("model.name_or_path",
            absl::StrCat(folder, " holds no model.safetensors or model.safetensors.index.json"));
    }
  }

  void Tokenizer() {
    const std::string& path = proto_.tokenizer().name_or_path();
    if (path.empty()) return;
    std::error_code ignored;
    if (!Exists(path))
      return Error(
          "tokenizer.name_or_path",
          absl::StrCat(path,
                       " is not there, expected a folder holding tokenizer.json, or the file"));
    if (fs::is_directory(path, ignored) && !Exists(fs::path(path) / "tokenizer.json")) {
      Error("tokenizer.name_or_path", absl::StrCat(path, " holds no tokenizer.json"));
    }
  }

  void Resume() {
    const std::string& resume = proto_.checkpoint().resume();
    if (resume == "auto" || resume == "never" || Exists(resume)) return;
    const std::string nearest = NearestName(resume, {"auto", "never"});
    Error("checkpoint.resume",
          absl::StrCat(resume, " is not there, expected auto, never or the path of a checkpoint",
                       nearest.empty() ? "" : absl::StrCat(", did you mean ", nearest, "?")));
  }

  const LoadedRecipe& recipe_;
  const Recipe& proto_;
  std::vector<RecipeError> errors_;
};

}  // namespace

std::vector<RecipeError> CheckRecipeInputs(const LoadedRecipe& recipe) {
  return InputChecker(recipe).Run();
}

}  // namespace shoal
