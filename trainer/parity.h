// Two recorded runs (see parity_record.h) of what should be the same training, compared tensor by
// tensor: the substance of `shoal parity`. Tensors are read part by part, so that no more than a
// few MiB of either run are held.
//
//   SHOAL_ASSIGN_OR_RETURN(const StepComparison step, CompareStep(files, "tmp/a", "tmp/b", 1));
//   std::fputs(StepTable(step).c_str(), stdout);
//   Judge({step}, 1e-10).text  // step 1: gradient of model.norm.weight differs first: 3.1e-02 ...
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/file_system.h"
#include "core/recipe.h"

namespace shoal {

// One number of a step, or one tensor by its element that differs most.
struct Difference {
  std::string kind;              // "loss", "gradient norm", "gradient", "weights", "adam_m", ...
  std::string name;              // The weight's, in Hugging Face's terms; empty: no tensor
  std::vector<int64_t> element;  // Indices as in Hugging Face's files
  double a = 0;
  double b = 0;
  // |a - b| / the tensor's largest |element| in both runs, which counts as at least a hundredth of
  // the largest of its kind: what should be zero holds nothing but rounding. Infinity: one of a and
  // b is not finite, or `mismatch` is set.
  double relative = 0;
  bool same_bits = true;  // Of the whole tensor as float64; NaN is like NaN
  std::string mismatch;   // "only in A"; shapes that differ
};

// In the order in which a step computes: loss, norm, gradients from the last layer to the first,
// weights, the optimizer's states.
struct StepComparison {
  int64_t step = 0;
  bool is_start = false;  // Before the first step
  std::vector<Difference> differences;
};

// The steps recorded in `folder`, ascending.
absl::StatusOr<std::vector<int64_t>> RecordedSteps(FileSystem& files, const std::string& folder);

// Compares one step of the runs recorded in folders `a` and `b`. `cancelled` is asked between parts
// of tensors: Cancelled if it says so.
absl::StatusOr<StepComparison> CompareStep(FileSystem& files, const std::string& a,
                                           const std::string& b, int64_t step,
                                           const std::function<bool()>& cancelled = {});

// A step in a few lines: both runs' numbers, and of each kind of tensors the one that differs most.
std::string StepTable(const StepComparison& comparison);

// What the coarser of both compute types leaves after a few steps.
double ParityTolerance(const Recipe& a, const Recipe& b);

struct Verdict {
  bool within = false;
  std::string text;  // One line
};
// tolerance 0: every bit must be the same.
Verdict Judge(const std::vector<StepComparison>& steps, double tolerance);

}  // namespace shoal
