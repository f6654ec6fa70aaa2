// Legend: B answers of a pass, T places.
#include "trainer/rlhf/reward_model.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "core/scalar_sum.h"
#include "inference/loaded_model.h"

namespace shoal {
namespace {

constexpr size_t kAnswersAPass = 16;

class ModelReward final : public Reward {
 public:
  explicit ModelReward(LoadedModel model) : model_(std::move(model)) {}

  absl::StatusOr<std::vector<double>> Score(std::span<const Answer> answers) override {
    std::vector<at::Tensor> scores;
    for (size_t first = 0; first < answers.size(); first += kAnswersAPass)
      ScorePass(answers.subspan(first, std::min(kAnswersAPass, answers.size() - first)), scores);
    return ReadNumbers(scores);
  }

 private:
  void ScorePass(std::span<const Answer> answers, std::vector<at::Tensor>& scores) const {
    const at::NoGradGuard no_grad;
    const int64_t B = static_cast<int64_t>(answers.size());
    std::vector<int64_t> lengths;
    for (const Answer& answer : answers)
      lengths.push_back(answer.prompt->tokens.size() + answer.tokens.size());
    const int64_t T = *std::max_element(lengths.begin(), lengths.end());
    Batch batch{.tokens_BT = at::zeros({B, T}, at::kLong),
                .targets_BT = at::full({B, T}, Batch::kIgnoreIndex, at::kLong),
                .positions_BT = at::arange(T, at::kLong).expand({B, T}).contiguous(),
                .documents_BT = {}};
    for (int64_t b = 0; b < B; ++b) {
      int64_t* row = batch.tokens_BT.mutable_data_ptr<int64_t>() + b * T;
      const std::vector<int64_t>& prompt = answers[b].prompt->tokens;
      std::copy(answers[b].tokens.begin(), answers[b].tokens.end(),
                std::copy(prompt.begin(), prompt.end(), row));
      batch.targets_BT[b][lengths[b] - 1] = 0;  // The place that is asked for
    }
    const at::Tensor scores_BT =
        ForwardAll(model_.model, model_.weights, batch, {.head_mode = HeadMode::kScores}).scores_BT;
    for (int64_t b = 0; b < B; ++b) scores.push_back(scores_BT[b][lengths[b] - 1]);
  }

  LoadedModel model_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Reward>> MakeModelReward(FileSystem& files, const std::string& path,
                                                        const Tokenizer& tokenizer,
                                                        at::Device device) {
  SHOAL_ASSIGN_OR_RETURN(LoadedModel model,
                         LoadModelForInference(files, path, at::kFloat, TensorPlace(), device));
  SHOAL_ASSIGN_OR_RETURN(const Tokenizer own, Tokenizer::Load(model.directory));
  if (own.fingerprint() != tokenizer.fingerprint()) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, " reads other tokens than the policy: train both from one tokenizer"));
  }
  return std::make_unique<ModelReward>(std::move(model));
}

}  // namespace shoal
