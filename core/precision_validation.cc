#include "core/precision_validation.h"

#include "absl/strings/str_cat.h"
#include "core/rlhf_validation.h"

namespace shoal {
namespace {

class PrecisionValidator {
 public:
  PrecisionValidator(const Recipe& recipe, const ReportError& error)
      : recipe_(recipe), zero_(recipe.zero()), error_(error) {}

  void Run() {
    Gradients();
    if (recipe_.model().dtype() == float16)
      Float16();
    else if (recipe_.training().has_loss_scaling())
      error_("training.loss_scaling",
             absl::StrCat("is of model.dtype float16, which is ", dtype()));
    if (recipe_.optimizer().master_weights() == OptimizerSection::split) SplitMasterWeights();
    if (zero_.quantized_weights()) Quantized("zero.quantized_weights", "gathers weights", {3});
    if (zero_.quantized_gradients())
      Quantized("zero.quantized_gradients", "reduces gradients to shards", {2, 3});
  }

 private:
  std::string dtype() const { return Dtype_Name(recipe_.model().dtype()); }

  void Gradients() {
    const ZeroSection::GradientDtype gradients = zero_.gradient_dtype();
    if (recipe_.model().dtype() == float64 && gradients != ZeroSection::auto_dtype) {
      error_("zero.gradient_dtype",
             "gradients are float64 with model.dtype float64, expected auto");
    } else if (recipe_.model().dtype() != bfloat16 && gradients == ZeroSection::gradient_bfloat16) {
      error_("zero.gradient_dtype",
             absl::StrCat("bfloat16 needs model.dtype bfloat16, which is ", dtype()));
    }
  }

  void Float16() {
    const TrainingSection& training = recipe_.training();
    if (!IsPlainTraining(recipe_)) {
      error_("model.dtype", absl::StrCat("got float16, which scales the losses of tasks pretrain, "
                                         "sft, dpo and reward, but the task is ",
                                         Task_Name(recipe_.task()), ", expected bfloat16"));
    }
    if (training.nan_policy() == TrainingSection::stop) {
      error_("training.nan_policy",
             "stop, but float16 finds its loss scale by steps that overflow and are skipped, "
             "expected skip");
    }
    if (training.max_skipped_steps() != TrainingSection().max_skipped_steps()) {
      error_("training.max_skipped_steps",
             "counts nothing with model.dtype float16, whose skipped steps halve the loss scale: "
             "training.loss_scaling.min_scale ends the run");
    }
    const LossScalingSection& scaling = training.loss_scaling();
    if (scaling.min_scale() > scaling.initial_scale()) {
      error_("training.loss_scaling.min_scale",
             absl::StrCat("got ", scaling.min_scale(), ", expected at most initial_scale ",
                          scaling.initial_scale()));
    }
  }

  void SplitMasterWeights() {
    const char* key = "optimizer.master_weights";
    if (recipe_.model().dtype() != bfloat16) {
      error_(key, absl::StrCat("split halves a float32 whose upper bits are a bfloat16, but "
                               "model.dtype is ",
                               dtype(), ", expected float32"));
    }
    if (recipe_.task() == federated) {
      error_(key,
             "split leaves no float32 weights to exchange with clients, expected float32 with task "
             "federated");
    }
    for (const auto& [where, what] : {std::pair(zero_.offload_optimizer(), "offload_optimizer"),
                                      {zero_.offload_parameters(), "offload_parameters"}}) {
      if (where != no_offload)
        error_(key, absl::StrCat("split keeps weights as two halves where they compute, but zero.",
                                 what, " offloads them, expected float32"));
    }
  }

  // `does`: what only these stages do.
  void Quantized(const char* key, const char* does, std::initializer_list<int> stages) {
    bool fits = false;
    std::string names;
    for (int stage : stages) {
      fits |= stage == zero_.stage();
      absl::StrAppend(&names, names.empty() ? "" : " or ", stage);
    }
    if (!fits) {
      error_(key, absl::StrCat("zero.stage ", zero_.stage(), " never ", does,
                               ", expected zero.stage ", names, " or false"));
    }
    if (!IsPlainTraining(recipe_)) {
      error_(key, absl::StrCat("is of tasks pretrain, sft, dpo and reward, but the task is ",
                               Task_Name(recipe_.task()), ", expected false"));
    }
  }

  const Recipe& recipe_;
  const ZeroSection& zero_;
  const ReportError& error_;
};

}  // namespace

void ValidatePrecision(const LoadedRecipe& recipe, const ReportError& error) {
  PrecisionValidator(recipe.proto, error).Run();
}

}  // namespace shoal
