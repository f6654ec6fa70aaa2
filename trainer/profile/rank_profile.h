// Where one rank's recorded time went.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "core/trace.h"

namespace shoal {

struct RankProfile {
  double seconds = 0;  // Of the window
  // Of the compute lane, by TraceKind; they add up to `seconds`. Nothing is left under kAwait: what
  // the compute lane waited for its own communication lane is kWait where that waited for another
  // rank, else kMove.
  std::array<double, kNumTraceKinds> kinds{};
  double product_flops = 0;
  double matrix_peak = 0;  // FLOP/s, measured on this rank's threads
  // Of kWait, by what was waited in ("all-gather of layer 3"), the longest first.
  std::vector<std::pair<std::string, double>> waits;
  // Of the communication lanes: moving bytes, and the part of it beside which the compute lane
  // worked on.
  double background = 0;
  double hidden = 0;
  double clock_round_trip = 0;  // Seconds; half of it bounds the error of this rank's times

  double of(TraceKind kind) const { return kinds[static_cast<int>(kind)]; }
  double products_of_peak() const {  // 0: no products, or no peak
    const double seconds = of(TraceKind::kMatMul);
    return seconds > 0 && matrix_peak > 0 ? product_flops / seconds / matrix_peak : 0;
  }
};

RankProfile ProfileOf(const std::vector<const TraceLane*>& lanes);

nlohmann::json ToJson(const RankProfile& profile);
RankProfile RankProfileFromJson(const nlohmann::json& json);

// Lines for people: a table of shares, what was lost to waiting and to what, a line a rank each.
std::vector<std::string> ProfileLines(const std::vector<RankProfile>& ranks);
// (profile_rank0_matmul_seconds, 1.25), ...
std::vector<std::pair<std::string, double>> ProfileMetrics(const std::vector<RankProfile>& ranks);

}  // namespace shoal
