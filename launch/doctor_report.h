// What `shoal doctor` has found, and how it is printed.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace shoal {

enum class Health {
  kFact,  // Neither good nor bad: a version, a rate
  kOk,
  kWarning,  // Works, but slower or with less room than it could
  kFailure,  // Something that a user needs does not work
};

struct Fact {
  std::string name;
  std::string text;                        // For people, one line
  nlohmann::ordered_json value = nullptr;  // For programs; null: the text says it all
  Health health = Health::kFact;
  std::string cure = "";  // Of a warning or failure: what to do, one line
};

struct ReportSection {
  std::string name;
  std::vector<Fact> facts = {};
};

using DoctorReport = std::vector<ReportSection>;

int CountFailures(const DoctorReport& report);
// One block a section, one line a fact; a cure follows on a line of its own.
std::string ToText(const ReportSection& section);
// {"ok": bool, "<section>": {"<name>": {"health": ..., "text": ..., "value": ..., "cure": ...}}}
std::string ToJson(const DoctorReport& report);

// "15.6 GiB"; "1.21 TFLOP/s"; "18.9 GB/s".
std::string FormatBytes(double bytes);
std::string FormatFlops(double flops_per_second);
std::string FormatBandwidth(double bytes_per_second);

}  // namespace shoal
