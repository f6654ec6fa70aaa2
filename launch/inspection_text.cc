#include <algorithm>
#include <map>

#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"

#include "core/metrics_console.h"
#include "launch/inspection.h"

namespace shoal {
namespace {

// Names come from files: what could move a terminal's cursor is shown as '?'.
std::string Printable(const std::string& text) {
  std::string printable = text;
  for (char& c : printable) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return printable;
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("(", absl::StrJoin(shape, ", "), ")");
}

void AppendState(const TrainerState& state, std::string* text) {
  absl::StrAppend(text, "  step ", state.step(), ", ", state.tokens(), " tokens, seed ",
                  state.seed());
  if (state.has_eval_loss()) absl::StrAppendFormat(text, ", held-out loss %.4f", state.eval_loss());
  if (state.skipped_steps() > 0)
    absl::StrAppend(text, ", ", state.skipped_steps(), " steps skipped");
  const TrainerState::Layout& layout = state.layout();
  absl::StrAppend(text, "\n  written by ", layout.ranks(), " ranks, ZeRO stage ",
                  layout.zero_stage());
  const std::pair<const char*, int> axes[] = {
      {"shard", layout.shard()},     {"replicate", layout.replicate()},
      {"tensor", layout.tensor()},   {"pipeline", layout.pipeline()},
      {"context", layout.context()}, {"expert", layout.expert()}};
  for (const auto& [name, size] : axes) {
    if (size > 1) absl::StrAppend(text, ", ", name, " ", size);
  }
  absl::StrAppend(text, "\n  data: epoch ", state.data().epoch(), ", ", state.data().sequences(),
                  " sequences read\n");
  if (state.has_shoal_version())
    absl::StrAppend(text, "  Shoal ", Printable(state.shoal_version()));
  if (state.has_wall_time()) {
    const absl::Time time = absl::UnixEpoch() + absl::Seconds(state.wall_time());
    absl::StrAppend(text, ", ",
                    absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", time, absl::UTCTimeZone()), "\n");
  } else if (state.has_shoal_version()) {
    absl::StrAppend(text, "\n");
  }
}

void AppendTensors(const std::vector<InspectedTensor>& tensors, std::string* text) {
  size_t name_width = 6, shape_width = 5;
  for (const InspectedTensor& tensor : tensors) {
    name_width = std::max(name_width, std::min<size_t>(tensor.name.size(), 80));
    shape_width = std::max(shape_width, ShapeText(tensor.shape).size());
  }
  const int names = static_cast<int>(name_width), shapes = static_cast<int>(shape_width);
  absl::StrAppendFormat(text, "\n  %-*s  %-7s  %-*s  %12s  %8s  files\n", names, "tensor", "dtype",
                        shapes, "shape", "elements", "bytes");
  for (const InspectedTensor& tensor : tensors) {
    absl::StrAppendFormat(text, "  %-*s  %-7s  %-*s  %12d  %8s  %d\n", names,
                          Printable(tensor.name), tensor.dtype, shapes, ShapeText(tensor.shape),
                          tensor.numel, HumanBytes(static_cast<double>(tensor.bytes)),
                          tensor.files.size());
  }
}

// Of the tensors whose names begin alike up to the first slash: "weights", "adam_m", ...
void AppendGroups(const Inspection& inspection, std::string* text) {
  std::map<std::string, std::pair<int64_t, int64_t>> groups;  // elements, bytes
  for (const InspectedTensor& tensor : inspection.tensors) {
    const size_t slash = tensor.name.find('/');
    auto& group = groups[slash == std::string::npos ? "" : tensor.name.substr(0, slash)];
    group.first += tensor.numel;
    group.second += tensor.bytes;
  }
  if (groups.size() < 2) return;
  for (const auto& [name, sums] : groups) {
    absl::StrAppend(text, "    ", name.empty() ? "others" : Printable(name), ": ", sums.first,
                    " elements, ", HumanBytes(static_cast<double>(sums.second)), "\n");
  }
}

nlohmann::ordered_json StateJson(const TrainerState& state) {
  nlohmann::ordered_json json = {
      {"step", state.step()},
      {"tokens", state.tokens()},
      {"seed", state.seed()},
      {"skipped_steps", state.skipped_steps()},
      {"data",
       {{"epoch", state.data().epoch()},
        {"sequences", state.data().sequences()},
        {"fingerprint", state.data().fingerprint()}}},
      {"layout",
       {{"ranks", state.layout().ranks()},
        {"zero_stage", state.layout().zero_stage()},
        {"shard", state.layout().shard()},
        {"replicate", state.layout().replicate()},
        {"tensor", state.layout().tensor()},
        {"pipeline", state.layout().pipeline()},
        {"context", state.layout().context()},
        {"expert", state.layout().expert()}}},
      {"shoal_version", state.shoal_version()},
      {"wall_time", state.wall_time()},
      {"trained_seconds", state.trained_seconds()},
  };
  if (state.has_eval_loss()) json["eval_loss"] = state.eval_loss();
  json["recipe"] = state.recipe_yaml();
  return json;
}

}  // namespace

std::string InspectionText(const Inspection& inspection) {
  std::string text = absl::StrCat(inspection.kind, " ", inspection.path, "\n");
  if (!inspection.checkpoints.empty()) {
    absl::StrAppend(&text, "  newest valid of: ", absl::StrJoin(inspection.checkpoints, ", "),
                    "\n");
  }
  if (inspection.state) AppendState(*inspection.state, &text);
  for (const auto& [name, value] : inspection.facts) {
    absl::StrAppend(&text, "  ", Printable(name), ": ", Printable(value), "\n");
  }
  AppendTensors(inspection.tensors, &text);
  int64_t file_bytes = 0;
  for (const InspectedFile& file : inspection.files) file_bytes += file.bytes;
  absl::StrAppend(&text, "\n  ", inspection.tensors.size(), " tensors, ", inspection.total_numel(),
                  " elements, ", HumanBytes(static_cast<double>(inspection.total_bytes())), " (",
                  inspection.total_bytes(), " bytes) in ", inspection.files.size(),
                  inspection.files.size() == 1 ? " file of " : " files of ", file_bytes,
                  " bytes\n");
  AppendGroups(inspection, &text);
  for (const std::string& note : inspection.notes) absl::StrAppend(&text, "  ", note, "\n");
  return text;
}

std::string InspectionJson(const Inspection& inspection) {
  nlohmann::ordered_json json = {{"kind", inspection.kind}, {"path", inspection.path}};
  if (inspection.state) json["state"] = StateJson(*inspection.state);
  if (!inspection.facts.empty()) {
    for (const auto& [name, value] : inspection.facts) json["facts"][name] = value;
  }
  if (!inspection.checkpoints.empty()) json["checkpoints"] = inspection.checkpoints;
  json["tensors"] = nlohmann::ordered_json::array();
  for (const InspectedTensor& tensor : inspection.tensors) {
    json["tensors"].push_back({{"name", tensor.name},
                               {"dtype", tensor.dtype},
                               {"shape", tensor.shape},
                               {"elements", tensor.numel},
                               {"bytes", tensor.bytes},
                               {"files", tensor.files}});
  }
  json["files"] = nlohmann::ordered_json::array();
  for (const InspectedFile& file : inspection.files) {
    json["files"].push_back({{"name", file.name}, {"bytes", file.bytes}});
  }
  json["totals"] = {{"tensors", inspection.tensors.size()},
                    {"elements", inspection.total_numel()},
                    {"bytes", inspection.total_bytes()}};
  json["notes"] = inspection.notes;
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace shoal
