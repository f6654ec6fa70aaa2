#include "launch/doctor_report.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace shoal {
namespace {

const char* Name(Health health) {
  switch (health) {
    case Health::kFact:
      return "fact";
    case Health::kOk:
      return "ok";
    case Health::kWarning:
      return "warning";
    case Health::kFailure:
      return "FAIL";
  }
  return "";
}

std::string Scaled(double value, double base, std::initializer_list<const char*> units) {
  const char* unit = *units.begin();
  for (const char* next : units) {
    unit = next;
    if (value < base || next == *(units.end() - 1)) break;
    value /= base;
  }
  return absl::StrFormat(value < 10 ? "%.2f %s" : value < 100 ? "%.1f %s" : "%.0f %s", value, unit);
}

}  // namespace

int CountFailures(const DoctorReport& report) {
  int failures = 0;
  for (const ReportSection& section : report) {
    for (const Fact& fact : section.facts) failures += fact.health == Health::kFailure;
  }
  return failures;
}

std::string ToText(const ReportSection& section) {
  size_t width = 0;
  for (const Fact& fact : section.facts) width = std::max(width, fact.name.size());
  std::string text = absl::StrCat(section.name, "\n");
  for (const Fact& fact : section.facts) {
    const char* mark = fact.health == Health::kFact ? "" : Name(fact.health);
    absl::StrAppendFormat(&text, "  %-7s  %-*s  %s\n", mark, static_cast<int>(width), fact.name,
                          fact.text);
    if (!fact.cure.empty())
      absl::StrAppendFormat(&text, "  %-7s  %-*s  -> %s\n", "", static_cast<int>(width), "",
                            fact.cure);
  }
  return text;
}

std::string ToJson(const DoctorReport& report) {
  nlohmann::ordered_json json = {{"ok", CountFailures(report) == 0}};
  for (const ReportSection& section : report) {
    nlohmann::ordered_json& facts = json[section.name] = nlohmann::ordered_json::object();
    for (const Fact& fact : section.facts) {
      nlohmann::ordered_json& entry =
          facts[fact.name] = {{"health", Name(fact.health)}, {"text", fact.text}};
      if (!fact.value.is_null()) entry["value"] = fact.value;
      if (!fact.cure.empty()) entry["cure"] = fact.cure;
    }
  }
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string FormatBytes(double bytes) {
  return Scaled(bytes, 1024, {"B", "KiB", "MiB", "GiB", "TiB"});
}
std::string FormatFlops(double rate) {
  return Scaled(rate / 1e6, 1000, {"MFLOP/s", "GFLOP/s", "TFLOP/s", "PFLOP/s"});
}
std::string FormatBandwidth(double rate) {
  return Scaled(rate / 1e6, 1000, {"MB/s", "GB/s", "TB/s"});
}

}  // namespace shoal
