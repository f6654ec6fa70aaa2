// A plan as a person or a program reads it.
#pragma once

#include <string>

#include "trainer/plan/plan.h"
#include "trainer/plan/suggest.h"

namespace shoal {

// What stands around a plan.
struct PlanFrame {
  std::string recipe;          // Its path
  std::string model;           // "llama, 5.60M parameters, computed in float32"
  std::string batch_equation;  // BatchPlan's
  Hardware hardware;
};

// "llama, 5.60M parameters, computed in float32".
std::string DescribeModel(const ModelConfig& config, at::ScalarType dtype, int64_t parameters);

std::string PlanText(const PlanFrame& frame, const Plan& plan);
// One JSON object: bytes and calls as numbers, seconds, one entry a kind of rank.
std::string PlanJson(const PlanFrame& frame, const Plan& plan);

std::string SuggestionsText(const PlanFrame& frame, const Suggestions& suggestions);
std::string SuggestionsJson(const PlanFrame& frame, const Suggestions& suggestions);

// "does not fit: 93 GB of 80 GB", or "" if it does.
std::string MemoryVerdict(const Plan& plan, const Hardware& hardware);

}  // namespace shoal
