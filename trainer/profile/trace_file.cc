#include "trainer/profile/trace_file.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace shoal {
namespace {

std::string Quoted(const std::string& text) { return nlohmann::json(text).dump(); }

// Nanoseconds as microseconds, every digit kept: spans that nest go on nesting.
std::string Microseconds(int64_t nanoseconds) {
  return absl::StrFormat("%d.%03d", nanoseconds / 1000, nanoseconds % 1000);
}

std::string Arguments(const TraceEvent& event) {
  const TraceDetail& detail = event.detail;
  std::vector<std::string> parts;
  if (detail.stage >= 0) parts.push_back(absl::StrCat("\"stage\":", detail.stage));
  if (detail.micro_batch >= 0)
    parts.push_back(absl::StrCat("\"micro_batch\":", detail.micro_batch));
  if (event.kind == TraceKind::kMove) parts.push_back(absl::StrCat("\"bytes\":", detail.bytes));
  if (detail.axis) parts.push_back(absl::StrCat("\"axis\":", Quoted(detail.axis)));
  if (detail.flops > 0) parts.push_back(absl::StrFormat("\"flops\":%.0f", detail.flops));
  return absl::StrJoin(parts, ",");
}

}  // namespace

std::string TraceEvents(const RankTrace& trace) {
  std::string out = absl::StrFormat(
      R"({"ph":"M","pid":%d,"tid":0,"name":"process_name","args":{"name":"rank %d"}},)"
      R"({"ph":"M","pid":%d,"tid":0,"name":"process_sort_index","args":{"sort_index":%d}})",
      trace.rank, trace.rank, trace.rank, trace.rank);
  for (size_t lane = 0; lane < trace.lanes.size(); ++lane) {
    absl::StrAppendFormat(
        &out, R"(,{"ph":"M","pid":%d,"tid":%d,"name":"thread_name","args":{"name":%s}})",
        trace.rank, lane, Quoted(trace.lanes[lane]->name()));
    for (const TraceEvent& event : trace.lanes[lane]->events()) {
      // Rank 0's window opens a moment after the others' may have.
      const int64_t begin = std::max<int64_t>(
          0, ToRankZero(trace.before, trace.after, event.begin_ns) - trace.origin_ns);
      const int64_t end =
          std::max(begin, ToRankZero(trace.before, trace.after, event.end_ns) - trace.origin_ns);
      absl::StrAppend(
          &out, ",\n{\"ph\":\"X\",\"pid\":", trace.rank, ",\"tid\":", lane,
          ",\"ts\":", Microseconds(begin), ",\"dur\":", Microseconds(end - begin), ",\"name\":",
          Quoted(event.label.empty() ? event.name : absl::StrCat(event.name, " ", event.label)),
          ",\"cat\":\"", NameOf(event.kind), "\",\"args\":{", Arguments(event), "}}");
    }
  }
  return out;
}

std::string TraceFile(const std::vector<std::string>& events_of_ranks,
                      const nlohmann::json& about) {
  return absl::StrCat("{\"displayTimeUnit\":\"ms\",\"otherData\":", about.dump(),
                      ",\n\"traceEvents\":[\n", absl::StrJoin(events_of_ranks, ",\n"), "]}\n");
}

}  // namespace shoal
