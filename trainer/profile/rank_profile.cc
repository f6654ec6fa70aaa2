#include "trainer/profile/rank_profile.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace shoal {
namespace {

constexpr TraceKind kShown[] = {
    TraceKind::kMatMul,       TraceKind::kAttention, TraceKind::kNorm,      TraceKind::kActivation,
    TraceKind::kCrossEntropy, TraceKind::kEmbedding, TraceKind::kOptimizer, TraceKind::kOther,
    TraceKind::kMove,         TraceKind::kWait};

double ToSeconds(int64_t nanoseconds) { return static_cast<double>(nanoseconds) * 1e-9; }

// "all-gather of layer 3": the call around a wait, and the nearest label around that.
std::string PlaceOfWait(const std::vector<TraceEvent>& events, const TraceEvent& wait) {
  const TraceEvent* call = nullptr;
  const TraceEvent* within = nullptr;  // The call's
  for (int32_t i = wait.parent; i >= 0; i = events[i].parent) {
    const TraceEvent& event = events[i];
    if (event.kind == TraceKind::kMove) {
      if (!call) call = &event;
      continue;
    }
    if (event.parent < 0 || absl::string_view(event.name) == "step") break;
    if (!within) within = &event;
    if (!event.label.empty())
      return absl::StrCat(call ? call->name : event.name, " of ", event.label);
  }
  const std::string name = call ? call->name : wait.name;
  if (within) return absl::StrCat(name, " in ", within->name);
  return call && call->detail.axis ? absl::StrCat(name, " over ", call->detail.axis) : name;
}

struct Span {
  int64_t begin, end;
  int64_t overlap(const Span& other) const {
    return std::max<int64_t>(0, std::min(end, other.end) - std::max(begin, other.begin));
  }
};

// When a lane waited for other ranks, in order, and in what.
struct Waits {
  explicit Waits(const TraceLane& lane) {
    for (const TraceEvent& event : lane.events()) {
      if (event.kind != TraceKind::kWait) continue;
      spans.push_back({event.begin_ns, event.end_ns});
      places.push_back(PlaceOfWait(lane.events(), event));
    }
  }
  std::vector<Span> spans;
  std::vector<std::string> places;
};

// When a lane was in a collective, in order.
std::vector<Span> Calls(const TraceLane& lane) {
  std::vector<Span> calls;
  for (const TraceEvent& event : lane.events()) {
    if (event.kind == TraceKind::kMove) calls.push_back({event.begin_ns, event.end_ns});
  }
  return calls;
}

// Nanoseconds of `spans` inside `window`; visit(index, nanoseconds) of each.
template <class F>
int64_t Inside(const std::vector<Span>& spans, const Span& window, F&& visit) {
  auto first = std::lower_bound(spans.begin(), spans.end(), window.begin,
                                [](const Span& span, int64_t at) { return span.end <= at; });
  int64_t total = 0;
  for (; first != spans.end() && first->begin < window.end; ++first) {
    const int64_t inside = first->overlap(window);
    visit(first - spans.begin(), inside);
    total += inside;
  }
  return total;
}

}  // namespace

RankProfile ProfileOf(const std::vector<const TraceLane*>& lanes) {
  RankProfile profile;
  const std::vector<TraceEvent>& compute = lanes[0]->events();
  profile.seconds = ToSeconds(compute[0].end_ns - compute[0].begin_ns);
  std::map<std::string, int64_t> waits;
  std::array<int64_t, kNumTraceKinds> kinds{};
  std::vector<Span> awaits;
  for (const TraceEvent& event : compute) {
    kinds[static_cast<int>(event.kind)] += event.self_ns();
    profile.product_flops += event.detail.flops;
    if (event.kind == TraceKind::kWait) waits[PlaceOfWait(compute, event)] += event.self_ns();
    if (event.kind == TraceKind::kAwait) awaits.push_back({event.begin_ns, event.end_ns});
  }
  const auto none = [](int64_t, int64_t) {};
  int64_t waited = 0, exposed = 0, background = 0;
  for (size_t lane = 1; lane < lanes.size(); ++lane) {
    const Waits theirs(*lanes[lane]);
    const std::vector<Span> calls = Calls(*lanes[lane]);
    for (const TraceEvent& event : lanes[lane]->events())
      background += event.kind == TraceKind::kMove ? event.self_ns() : 0;
    for (const Span& await : awaits) {
      const int64_t lost = Inside(theirs.spans, await, [&](int64_t wait, int64_t nanoseconds) {
        waits[theirs.places[wait]] += nanoseconds;
      });
      waited += lost;
      exposed += Inside(calls, await, none) - lost;
    }
  }
  int64_t& await = kinds[static_cast<int>(TraceKind::kAwait)];
  kinds[static_cast<int>(TraceKind::kWait)] += waited;
  kinds[static_cast<int>(TraceKind::kMove)] += await - waited;
  await = 0;
  for (int kind = 0; kind < kNumTraceKinds; ++kind) profile.kinds[kind] = ToSeconds(kinds[kind]);
  profile.background = ToSeconds(background);
  profile.hidden = ToSeconds(std::max<int64_t>(0, background - exposed));
  for (const auto& [place, nanoseconds] : waits)
    profile.waits.emplace_back(place, ToSeconds(nanoseconds));
  std::stable_sort(profile.waits.begin(), profile.waits.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  return profile;
}

nlohmann::json ToJson(const RankProfile& profile) {
  nlohmann::json kinds, waits = nlohmann::json::array();
  for (TraceKind kind : kShown) kinds[NameOf(kind)] = profile.of(kind);
  for (const auto& [place, seconds] : profile.waits) waits.push_back({place, seconds});
  return {{"seconds", profile.seconds},
          {"seconds_by_kind", kinds},
          {"product_flops", profile.product_flops},
          {"matrix_peak_flops_per_second", profile.matrix_peak},
          {"products_of_peak", profile.products_of_peak()},
          {"waited_in", waits},
          {"background_communication_seconds", profile.background},
          {"hidden_communication_seconds", profile.hidden},
          {"clock_round_trip_seconds", profile.clock_round_trip}};
}

RankProfile RankProfileFromJson(const nlohmann::json& json) {
  RankProfile profile{.seconds = json.at("seconds"),
                      .product_flops = json.at("product_flops"),
                      .matrix_peak = json.at("matrix_peak_flops_per_second"),
                      .background = json.at("background_communication_seconds"),
                      .hidden = json.at("hidden_communication_seconds"),
                      .clock_round_trip = json.at("clock_round_trip_seconds")};
  for (TraceKind kind : kShown)
    profile.kinds[static_cast<int>(kind)] = json.at("seconds_by_kind").at(NameOf(kind));
  for (const auto& wait : json.at("waited_in")) profile.waits.emplace_back(wait[0], wait[1]);
  return profile;
}

std::vector<std::string> ProfileLines(const std::vector<RankProfile>& ranks) {
  std::vector<std::string> lines = {absl::StrFormat("%-6s", "rank")};
  for (TraceKind kind : kShown) absl::StrAppend(&lines[0], "  ", NameOf(kind));
  absl::StrAppend(&lines[0], "  (% of the rank's time)");
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    std::string& line = lines.emplace_back(absl::StrFormat("%-6d", rank));
    for (TraceKind kind : kShown) {
      absl::StrAppendFormat(&line, "  %*.1f",
                            static_cast<int>(absl::string_view(NameOf(kind)).size()),
                            100 * ranks[rank].of(kind) / ranks[rank].seconds);
    }
  }
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    const RankProfile& profile = ranks[rank];
    const double waited = profile.of(TraceKind::kWait);
    std::string& line = lines.emplace_back(
        absl::StrFormat("rank %d waited %.2f s of %.2f s", rank, waited, profile.seconds));
    if (waited > 0 && !profile.waits.empty()) {
      absl::StrAppendFormat(&line, ", %.0f %% in %s", 100 * profile.waits[0].second / waited,
                            profile.waits[0].first);
    }
    if (profile.products_of_peak() > 0) {
      absl::StrAppendFormat(&line, "; products ran at %.0f %% of its peak of %.1f GFLOP/s",
                            100 * profile.products_of_peak(), profile.matrix_peak * 1e-9);
    }
    if (profile.background > 0) {
      absl::StrAppendFormat(&line, "; %.0f %% of %.2f s of communication hidden",
                            100 * profile.hidden / profile.background, profile.background);
    }
  }
  return lines;
}

std::vector<std::pair<std::string, double>> ProfileMetrics(const std::vector<RankProfile>& ranks) {
  std::vector<std::pair<std::string, double>> metrics;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    const std::string prefix = absl::StrCat("profile_rank", rank, "_");
    metrics.emplace_back(prefix + "seconds", ranks[rank].seconds);
    for (TraceKind kind : kShown) {
      metrics.emplace_back(
          absl::StrCat(prefix, absl::StrReplaceAll(NameOf(kind), {{" ", "_"}}), "_seconds"),
          ranks[rank].of(kind));
    }
    metrics.emplace_back(prefix + "products_of_peak", ranks[rank].products_of_peak());
    metrics.emplace_back(prefix + "hidden_communication_seconds", ranks[rank].hidden);
    metrics.emplace_back(prefix + "background_communication_seconds", ranks[rank].background);
  }
  return metrics;
}

}  // namespace shoal
