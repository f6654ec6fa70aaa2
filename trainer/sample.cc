#include "trainer/sample.h"

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "data/tokenizer.h"
#include "inference/generator.h"
#include "inference/loaded_model.h"
#include "inference/text_stream.h"

namespace shoal {
namespace {

// The text of all samples.
absl::StatusOr<std::string> TextOfSamples(const SampleSection& section, uint64_t seed,
                                          FileSystem& files, const RunPaths& paths,
                                          at::Device device) {
  SHOAL_ASSIGN_OR_RETURN(const Tokenizer tokenizer, Tokenizer::Load(paths.exported));
  SHOAL_ASSIGN_OR_RETURN(const LoadedModel loaded,
                         LoadModelForInference(files, paths.exported, at::kFloat, {}, device));
  std::vector<GenerationRequest> requests;
  std::vector<TextStream> streams;
  streams.reserve(section.prompts_size());
  for (const std::string& prompt : section.prompts()) {
    SHOAL_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer.Encode(prompt));
    TextStream& stream = streams.emplace_back(tokenizer, std::vector<std::string>{}, nullptr);
    requests.push_back({.prompt = {ids.begin(), ids.end()},
                        .max_new_tokens = section.max_new_tokens(),
                        .sampling = {.temperature = section.temperature(),
                                     .top_k = section.top_k(),
                                     .top_p = section.top_p(),
                                     .seed = seed},
                        .stream = requests.size(),
                        .eos_token_ids = loaded.model.config.eos_token_ids,
                        .on_token = [&stream](int64_t token) { return stream.Push(token); }});
  }
  Generator generator(loaded.model, loaded.weights);
  SHOAL_RETURN_IF_ERROR(generator.Generate(requests).status());
  std::string text;
  for (size_t i = 0; i < streams.size(); ++i) {
    streams[i].Finish();
    absl::StrAppend(&text, "--- sample ", i + 1, "\n", section.prompts(static_cast<int>(i)),
                    streams[i].text(), "\n");
  }
  return text;
}

}  // namespace

absl::Status PrintSamples(const SampleSection& section, uint64_t seed, FileSystem& files,
                          const RunPaths& paths, at::Device device) {
  if (section.prompts().empty()) return absl::OkStatus();
  absl::StatusOr<std::string> text = TextOfSamples(section, seed, files, paths, device);
  if (!device.is_cpu() && absl::IsResourceExhausted(text.status()))
    text = TextOfSamples(section, seed, files, paths, at::kCPU);
  SHOAL_RETURN_IF_ERROR(text.status());
  std::fputs(text->c_str(), stdout);
  std::fflush(stdout);
  return WriteFileAtomically(files, paths.samples, *text);
}

}  // namespace shoal
