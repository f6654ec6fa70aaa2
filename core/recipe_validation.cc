#include "core/recipe_validation.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/context_validation.h"
#include "core/device_validation.h"
#include "core/federated_validation.h"
#include "core/moe_validation.h"
#include "core/offload_validation.h"
#include "core/optimizer_validation.h"
#include "core/precision_validation.h"
#include "core/recipe_examples.h"
#include "core/recipe_schema.h"
#include "core/rlhf_validation.h"

namespace shoal {
namespace {

constexpr int64_t kDefaultPerDevice = 8;

// Certainly text that needs a tokenizer; a folder's or pattern's files are only known once they are
// read.
bool IsText(const DataSource& source) {
  if (source.format() == DataSource::text || source.format() == DataSource::jsonl) return true;
  if (source.format() != DataSource::auto_format) return false;
  for (const char* ending : {".txt", ".md", ".jsonl"}) {
    if (absl::EndsWith(source.path(), ending)) return true;
  }
  return false;
}

bool HasTokenizer(const Recipe& recipe) {
  return !recipe.tokenizer().name_or_path().empty() || recipe.tokenizer().has_train() ||
         !recipe.model().name_or_path().empty();
}

class Validator {
 public:
  explicit Validator(const LoadedRecipe& recipe) : recipe_(recipe), proto_(recipe.proto) {}

  std::vector<RecipeError> Run() {
    const ReportError report = [this](const std::string& key, std::string message) {
      Error(key, std::move(message));
    };
    RunLength();
    Batch();
    Model();
    Tokenizer();
    Data();
    ValidateOptimizer(recipe_, report);
    Scheduler();
    Parallelism();
    ValidateContext(recipe_, report);
    ValidatePrecision(recipe_, report);
    ValidateOffload(recipe_, report);
    ValidateDevice(recipe_, report);
    Checkpoint();
    Profiling();
    Sample();
    ValidateMoe(recipe_, report);
    ValidateExamples(recipe_, report);
    ValidateRlhf(recipe_, report);
    ValidateFederated(recipe_, report);
    return std::move(errors_);
  }

 private:
  void Error(const std::string& key, std::string message) {
    errors_.push_back({recipe_.OriginOf(key), key, std::move(message)});
  }

  void RunLength() {
    const TrainingSection& training = proto_.training();
    std::vector<std::string> given;
    if (training.has_max_steps()) given.push_back("max_steps");
    if (training.has_num_train_epochs()) given.push_back("num_train_epochs");
    if (training.has_max_tokens()) given.push_back("max_tokens");
    if (given.empty() && proto_.task() != federated) {
      Error("training",
            "the run has no length, expected one of max_steps, num_train_epochs, max_tokens");
    }
    for (size_t i = 1; i < given.size(); ++i) {
      Error(absl::StrCat("training.", given[i]),
            absl::StrCat("given beside training.", given[0],
                         ", expected exactly one of max_steps, num_train_epochs, max_tokens"));
    }
  }

  // What no number of ranks can make come out.
  void Batch() {
    const TrainingSection& training = proto_.training();
    if (!training.has_global_batch_size()) return;
    const int64_t global = training.global_batch_size();
    const int64_t step = static_cast<int64_t>(std::max(1, training.per_device_train_batch_size())) *
                         std::max(1, training.gradient_accumulation_steps());
    if (step > 0 && global % step != 0) {
      Error("training.global_batch_size",
            absl::StrCat("got ", global,
                         ", expected a multiple of per_device_train_batch_size * "
                         "gradient_accumulation_steps = ",
                         step));
    }
  }

  void Model() {
    const ModelSection& model = proto_.model();
    if (model.name_or_path().empty() && !model.has_config()) {
      Error("model",
            "no model, expected name_or_path (a Hugging Face folder) or config (the keys of a "
            "config.json)");
    }
    if (model.init() == ModelSection::pretrained && model.name_or_path().empty()) {
      Error("model.init", "pretrained weights come from a folder, expected model.name_or_path");
    }
  }

  void Tokenizer() {
    const TokenizerSection& tokenizer = proto_.tokenizer();
    if (tokenizer.has_train() && !tokenizer.name_or_path().empty()) {
      Error("tokenizer.train", "given beside tokenizer.name_or_path, expected one of them");
    }
    if (tokenizer.has_train()) {
      std::vector<std::string> tokens(tokenizer.train().special_tokens().begin(),
                                      tokenizer.train().special_tokens().end());
      const int room = tokenizer.train().vocab_size() - 256;
      if (static_cast<int>(tokens.size()) > room) {
        Error("tokenizer.train.special_tokens",
              absl::StrCat("got ", tokens.size(), ", expected at most ", room, " (vocab_size ",
                           tokenizer.train().vocab_size(), " less 256 bytes)"));
      }
      for (size_t i = 0; i < tokens.size(); ++i) {
        const bool twice =
            std::find(tokens.begin(), tokens.begin() + i, tokens[i]) != tokens.begin() + i;
        if (twice || tokens[i].empty()) {
          Error(absl::StrCat("tokenizer.train.special_tokens.", i),
                tokens[i].empty() ? "an empty token" : "given twice");
        }
      }
      if (!proto_.data().train().empty() &&
          std::none_of(
              proto_.data().train().begin(), proto_.data().train().end(),
              [](const DataSource& source) { return source.format() != DataSource::tokens; })) {
        Error("tokenizer.train",
              "data.train holds tokens only, expected text to train a tokenizer on");
      }
    }
    if (HasTokenizer(proto_)) return;
    for (int i = 0; i < proto_.data().train_size(); ++i) {
      if (!IsText(proto_.data().train(i))) continue;
      return Error(absl::StrCat("data.train.", i),
                   "text needs a tokenizer, expected tokenizer.name_or_path or tokenizer.train");
    }
  }

  void Data() {
    const DataSection& data = proto_.data();
    if (data.train().empty() && !IsRlhfTask(proto_))
      Error("data.train", "no training data, expected a list such as [{path: corpus.txt}]");
    const auto check = [&](const auto& sources, const std::string& list) {
      for (int i = 0; i < sources.size(); ++i) {
        const std::string key = absl::StrCat(list, ".", i);
        if (sources[i].has_path() && sources[i].path().empty())
          Error(absl::StrCat(key, ".path"), "an empty path");
        if (sources[i].format() == DataSource::jsonl && sources[i].field().empty()) {
          Error(absl::StrCat(key, ".field"),
                "empty, expected the name of the JSON field that holds the document");
        }
      }
    };
    check(data.train(), "data.train");
    check(data.eval(), "data.eval");
    if (data.holdout() > 0 && !data.eval().empty()) {
      Error("data.holdout", "given beside data.eval, expected one source of held-out data");
    }
    if (proto_.eval().steps() > 0 && data.holdout() == 0 && data.eval().empty() &&
        !IsRlhfTask(proto_)) {
      Error("eval.steps", "nothing to evaluate on, expected data.eval or data.holdout above 0");
    }
  }

  void Scheduler() {
    const SchedulerSection& scheduler = proto_.scheduler();
    if (scheduler.type() != SchedulerSection::wsd) return;
    const double warmup = scheduler.warmup_steps(), decay = scheduler.decay_steps();
    const bool shares = warmup < 1 && decay < 1;
    if (!shares && !proto_.training().has_max_steps()) return;  // Known once the data is counted
    const double steps = shares ? 1.0 : static_cast<double>(proto_.training().max_steps());
    const double warmup_steps = warmup < 1 ? warmup * steps : warmup;
    const double decay_steps = decay < 1 ? decay * steps : decay;
    if (warmup_steps + decay_steps <= steps) return;
    Error(
        "scheduler",
        absl::StrCat("wsd: warmup_steps ", NumberText(warmup_steps), " + decay_steps ",
                     NumberText(decay_steps), " are longer than the run, expected at most ",
                     NumberText(steps), shares ? " (shares of the run)" : " (training.max_steps)"));
  }

  void Parallelism() {
    Experts();
    Pipeline();
  }

  void Experts() {
    const ParallelismSection& axes = proto_.parallelism();
    const std::string& task = Task_Name(proto_.task());
    if (axes.expert_parallel() > 1) {
      const std::string got = absl::StrCat("got ", axes.expert_parallel());
      if (axes.data_parallel_shard() % axes.expert_parallel() != 0) {
        Error("parallelism.expert_parallel",
              absl::StrCat(got, ", expected a divisor of data_parallel_shard ",
                           axes.data_parallel_shard()));
      }
      if (!IsPlainTraining(proto_)) {
        Error(
            "parallelism.expert_parallel",
            absl::StrCat(got, ", but task ", task, " wants every expert on each rank, expected 1"));
      }
    }
  }

  void Pipeline() {
    const ParallelismSection& axes = proto_.parallelism();
    const ParallelismSection::PipelineSchedule schedule = axes.pipeline_schedule();
    const std::string name = EnumYamlName(
        *ParallelismSection::PipelineSchedule_descriptor()->FindValueByNumber(schedule));
    const bool halves =
        schedule == ParallelismSection::zb_h1 || schedule == ParallelismSection::zbv;
    if (axes.pipeline_parallel() == 1) {
      const auto alone = [&](const char* key, const std::string& value) {
        Error(absl::StrCat("parallelism.", key),
              absl::StrCat("got ", value, ", which takes pipeline_parallel above 1"));
      };
      if (schedule != ParallelismSection::one_f_one_b) alone("pipeline_schedule", name);
      if (axes.pipeline_chunks() > 1)
        alone("pipeline_chunks", absl::StrCat(axes.pipeline_chunks()));
      return;
    }
    if (halves && proto_.zero().stage() > 1) {
      Error("zero.stage", absl::StrCat("got ", proto_.zero().stage(), ", but ", name,
                                       " adds gradients up between the halves of backward passes, "
                                       "expected 0 or 1, or another pipeline_schedule"));
    }
    const int chunks = axes.pipeline_chunks();
    const bool takes_any = schedule == ParallelismSection::interleaved_1f1b;
    const int takes = schedule == ParallelismSection::zbv ? 2 : 1;
    if (chunks != 0 && !takes_any && chunks != takes) {
      Error("parallelism.pipeline_chunks",
            absl::StrCat("got ", chunks, ", expected ", takes, " with ", name));
    }
  }

  void Checkpoint() {
    if (proto_.checkpoint().resume().empty())
      Error("checkpoint.resume", "empty, expected auto, never or the path of a checkpoint");
    if (proto_.run().output_dir().empty()) Error("run.output_dir", "empty, expected a folder");
  }

  void Profiling() {
    const ProfilingSection& profiling = proto_.profiling();
    const int64_t first = profiling.start_step(), steps = profiling.steps();
    if (steps == 0) {
      if (first != ProfilingSection().start_step())
        Error("profiling.start_step",
              absl::StrCat("got ", first,
                           ", but profiling.steps is 0 and nothing is recorded, expected steps "
                           "above 0"));
      return;
    }
    const int64_t last = first + steps - 1;
    if (proto_.training().has_max_steps() && last > proto_.training().max_steps()) {
      Error("profiling",
            absl::StrCat("steps ", first, " to ", last, " are recorded, but the run has ",
                         proto_.training().max_steps(), " (training.max_steps)"));
    }
  }

  void Sample() {
    if (proto_.sample().prompts().empty()) return;
    if (!HasTokenizer(proto_)) {
      Error("sample.prompts",
            "text needs a tokenizer, expected tokenizer.name_or_path or tokenizer.train");
    }
    if (proto_.checkpoint().export_hf() == CheckpointSection::never) {
      Error("sample.prompts",
            "continued by the exported model, expected checkpoint.export_hf: final or no prompts "
            "(sample.prompts=[])");
    }
  }

  const LoadedRecipe& recipe_;
  const Recipe& proto_;
  std::vector<RecipeError> errors_;
};

std::string BatchEquation(const BatchPlan& plan, int ranks) {
  return absl::StrCat("global_batch_size ", plan.global, " = per_device_train_batch_size ",
                      plan.per_device, " * gradient_accumulation_steps ", plan.accumulation,
                      " * ranks ", ranks);
}

}  // namespace

std::vector<RecipeError> ValidateRecipe(const LoadedRecipe& recipe) {
  return Validator(recipe).Run();
}

absl::StatusOr<BatchPlan> PlanBatch(const LoadedRecipe& recipe, int data_parallel_ranks) {
  const TrainingSection& training = recipe.proto.training();
  const int64_t ranks = data_parallel_ranks;
  BatchPlan plan{training.per_device_train_batch_size(), training.gradient_accumulation_steps(),
                 training.global_batch_size(), ""};
  if (plan.global > 0) {
    const int64_t step =
        ranks * std::max<int64_t>(1, plan.per_device) * std::max<int64_t>(1, plan.accumulation);
    if (plan.global % step != 0) {
      const int64_t below = plan.global / step * step;
      return recipe.ErrorAt(
          "training.global_batch_size",
          absl::StrCat("got ", plan.global, ", expected a multiple of per_device_train_batch_size ",
                       std::max<int64_t>(1, plan.per_device), " * gradient_accumulation_steps ",
                       std::max<int64_t>(1, plan.accumulation), " * ranks ", ranks, " = ", step,
                       ", such as ", below > 0 ? absl::StrCat(below, " or ") : "", below + step));
    }
    const int64_t share = plan.global / ranks;
    if (plan.per_device == 0 && plan.accumulation > 0) plan.per_device = share / plan.accumulation;
    if (plan.per_device == 0) {
      plan.per_device = std::min(kDefaultPerDevice, share);
      while (share % plan.per_device != 0) --plan.per_device;
    }
    if (plan.accumulation == 0) plan.accumulation = share / plan.per_device;
  } else {
    if (plan.per_device == 0) plan.per_device = kDefaultPerDevice;
    if (plan.accumulation == 0) plan.accumulation = 1;
    plan.global = plan.per_device * plan.accumulation * ranks;
  }
  plan.equation = BatchEquation(plan, data_parallel_ranks);
  if (plan.global != plan.per_device * plan.accumulation * ranks) {
    return recipe.ErrorAt(
        "training.global_batch_size",
        absl::StrCat("the batch equation does not come out: ", plan.equation, " = ",
                     plan.per_device * plan.accumulation * ranks, "; leave one of the three out"));
  }
  return plan;
}

absl::StatusOr<MeshPlan> PlanMesh(const LoadedRecipe& recipe, int ranks) {
  if (recipe.proto.task() == federated) {
    const int group = recipe.proto.federated().group_size();
    if (ranks % group != 0) {
      return recipe.ErrorAt("federated.group_size",
                            absl::StrCat("got ", group, ", expected a divisor of the ", ranks,
                                         ranks == 1 ? " rank" : " ranks"));
    }
    ranks = group;
  }
  const ParallelismSection& axes = recipe.proto.parallelism();
  MeshPlan plan{axes.data_parallel_replicate(),
                axes.data_parallel_shard(),
                axes.tensor_parallel(),
                axes.pipeline_parallel(),
                axes.context_parallel(),
                axes.expert_parallel(),
                1,
                ""};
  const double others = double{1} * plan.replicate * plan.tensor * plan.pipeline * plan.context;
  if (plan.shard == 0 && others <= ranks && ranks % static_cast<int>(others) == 0)
    plan.shard = ranks / static_cast<int>(others);
  const std::string product = absl::StrCat(
      "replicate ", plan.replicate, " * shard ", plan.shard == 0 ? "?" : absl::StrCat(plan.shard),
      " * tensor ", plan.tensor, " * pipeline ", plan.pipeline, " * context ", plan.context);
  if (plan.shard == 0 || others * plan.shard != ranks) {
    return recipe.ErrorAt(
        recipe.IsSet("parallelism.data_parallel_shard") ? "parallelism.data_parallel_shard"
                                                        : "parallelism",
        absl::StrCat("the mesh does not come out: ", ranks, " ranks = ", product,
                     "; change -n or data_parallel_shard (0: what the other axes leave)"));
  }
  if (plan.shard % plan.expert != 0) {
    return recipe.ErrorAt(
        "parallelism.expert_parallel",
        absl::StrCat("got ", plan.expert, ", expected a divisor of the ", plan.shard,
                     plan.shard == 1 ? " rank" : " ranks", " of data_parallel_shard (", ranks,
                     ranks == 1 ? " rank = " : " ranks = ", product, ")"));
  }
  plan.data_parallel_ranks = plan.replicate * plan.shard;
  plan.equation = absl::StrCat(ranks, ranks == 1 ? " rank = " : " ranks = ", product);
  if (plan.expert > 1) absl::StrAppend(&plan.equation, ", experts over ", plan.expert, " of shard");
  return plan;
}

}  // namespace shoal
