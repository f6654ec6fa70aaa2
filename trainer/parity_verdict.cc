#include <algorithm>
#include <tuple>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "trainer/parity.h"
#include "trainer/parity_record.h"

namespace shoal {
namespace {

std::string NameOf(const StepComparison& step) {
  return step.is_start ? "start" : absl::StrCat("step ", step.step);
}

// "gradient of model.norm.weight".
std::string Subject(const Difference& difference) {
  if (difference.name.empty()) return difference.kind;
  return absl::StrCat(difference.kind, " of ", difference.name);
}

bool DiffersMore(const Difference& x, const Difference& y) {
  return std::tuple(x.relative, !x.same_bits) > std::tuple(y.relative, !y.same_bits);
}

// "3.1e-02 relative at element [5, 17] (A 0.0123, B 0.0456)".
std::string Measure(const Difference& difference) {
  if (!difference.mismatch.empty()) return difference.mismatch;
  const std::string where =
      difference.name.empty()
          ? ""
          : absl::StrCat(" at element [", absl::StrJoin(difference.element, ", "), "]");
  return absl::StrFormat("%.1e relative%s (A %s, B %s)", difference.relative, where,
                         Digits(difference.a), Digits(difference.b));
}

// `first` is the first tensor beyond the tolerance in `step` or, if there is none, the first
// number.
std::string TellDifference(const StepComparison& step, const Difference& first, int64_t beyond) {
  std::string text =
      absl::StrCat(NameOf(step), ": ", Subject(first), " differs first: ", Measure(first));
  int64_t tensors = 0;
  for (const Difference& difference : step.differences) {
    tensors += !difference.name.empty();
    if (difference.kind != "loss" || &difference == &first) continue;
    absl::StrAppend(&text, "; loss of the step: ",
                    difference.same_bits ? absl::StrCat("equal (", Digits(difference.a), ")")
                                         : Measure(difference));
  }
  return absl::StrCat(text, "; beyond the tolerance: ", beyond, " of ", tensors, " tensors");
}

}  // namespace

std::string StepTable(const StepComparison& comparison) {
  const auto row = [](const auto&... columns) {
    return absl::StrFormat("%-14s  %-22s  %-22s  %-10s  %s\n", columns...);
  };
  std::string table = row(NameOf(comparison), "A", "B", "difference", "where it is largest");
  const auto& all = comparison.differences;
  for (auto first = all.begin(); first != all.end();) {
    const auto end = std::find_if(
        first, all.end(), [&](const Difference& other) { return other.kind != first->kind; });
    const Difference& most = *std::max_element(
        first, end, [](const auto& x, const auto& y) { return DiffersMore(y, x); });
    if (most.same_bits) {
      const std::string value = most.name.empty() ? Digits(most.a) : "";
      table += row(most.kind, value, value, "0", "");
    } else {
      const std::string at = most.name.empty() || !most.mismatch.empty()
                                 ? most.mismatch
                                 : absl::StrCat("[", absl::StrJoin(most.element, ", "), "]");
      const bool numbers = most.mismatch.empty();
      table += row(most.kind, numbers ? Digits(most.a) : "", numbers ? Digits(most.b) : "",
                   absl::StrFormat("%.1e", most.relative), absl::StrCat(most.name, " ", at));
    }
    first = end;
  }
  std::string text;
  for (absl::string_view line : absl::StrSplit(table, '\n', absl::SkipEmpty()))
    absl::StrAppend(&text, absl::StripTrailingAsciiWhitespace(line), "\n");
  return text;
}

double ParityTolerance(const Recipe& a, const Recipe& b) {
  const auto either = [&](Dtype dtype) {
    return a.model().dtype() == dtype || b.model().dtype() == dtype;
  };
  const auto quantizes = [](const ZeroSection& zero) {
    return zero.quantized_weights() || zero.quantized_gradients();
  };
  const bool coarse =
      either(bfloat16) || either(float16) || quantizes(a.zero()) || quantizes(b.zero());
  return coarse ? 5e-2 : either(float32) ? 2e-4 : 1e-10;
}

Verdict Judge(const std::vector<StepComparison>& steps, double tolerance) {
  const Difference* largest = nullptr;
  const StepComparison* largest_step = nullptr;
  int64_t trained = 0;
  for (const StepComparison& step : steps) {
    trained += !step.is_start;
    const Difference* first_tensor = nullptr;
    const Difference* first_number = nullptr;
    int64_t tensors_beyond = 0;
    for (const Difference& difference : step.differences) {
      if (difference.same_bits) continue;
      if (largest == nullptr || DiffersMore(difference, *largest)) {
        largest = &difference;
        largest_step = &step;
      }
      if (tolerance > 0 && difference.relative <= tolerance) continue;
      const Difference*& first = difference.name.empty() ? first_number : first_tensor;
      if (first == nullptr) first = &difference;
      tensors_beyond += !difference.name.empty();
    }
    if (first_tensor != nullptr)
      return {.within = false, .text = TellDifference(step, *first_tensor, tensors_beyond)};
    if (first_number != nullptr)
      return {.within = false, .text = TellDifference(step, *first_number, 0)};
  }
  const std::string over = absl::StrCat(" over ", trained, trained == 1 ? " step" : " steps");
  if (largest == nullptr) return {.within = true, .text = "equal to the last bit" + over};
  return {.within = true,
          .text = absl::StrCat("equal within ", tolerance, over, ": largest difference ",
                               Measure(*largest), " in the ", Subject(*largest), ", ",
                               NameOf(*largest_step))};
}

}  // namespace shoal
