#include "core/context_validation.h"

#include "absl/strings/str_cat.h"

namespace shoal {
namespace {

// Why a task wants whole sequences on each rank; null: it does not.
const char* WhyWholeSequences(Task task) {
  switch (task) {
    case pretrain:
    case sft:
      return nullptr;
    case dpo:
    case reward:
      return "compares whole sequences, and what it adds up over one lies on one rank";
    case federated:
      return "shares a client's examples, which are short, over ranks whole";
    default:
      return "generates with whole sequences on each rank";
  }
}

}  // namespace

void ValidateContext(const LoadedRecipe& recipe, const ReportError& error) {
  const ParallelismSection& axes = recipe.proto.parallelism();
  const int64_t ranks = axes.context_parallel(), length = recipe.proto.data().seq_length();
  if (ranks == 1) {
    if (axes.context_method() != ParallelismSection::ring)
      error("parallelism.context_method",
            absl::StrCat("got ", ParallelismSection::ContextMethod_Name(axes.context_method()),
                         ", which takes context_parallel above 1"));
    return;
  }
  if (const char* why = WhyWholeSequences(recipe.proto.task())) {
    return error("parallelism.context_parallel",
                 absl::StrCat("got ", ranks, ", but task ", Task_Name(recipe.proto.task()), " ",
                              why, ", expected 1"));
  }
  const int64_t pieces = 2 * ranks;
  if (length % pieces == 0) return;
  const int64_t below = length / pieces * pieces;
  error("data.seq_length",
        absl::StrCat("got ", length, ", expected a multiple of 2 * context_parallel ", ranks, " = ",
                     pieces, ", such as ", below > 0 ? absl::StrCat(below, " or ") : "",
                     below + pieces, ": each rank holds two pieces of a sequence"));
}

}  // namespace shoal
