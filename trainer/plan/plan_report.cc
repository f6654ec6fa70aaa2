#include "trainer/plan/plan_report.h"

#include <algorithm>
#include <functional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/dtype.h"
#include "core/metrics_console.h"
#include "parallel/pipeline/picture.h"
#include "parallel/pipeline/simulate.h"

namespace shoal {
namespace {

std::string Bytes(int64_t bytes) { return HumanBytes(static_cast<double>(bytes)); }

std::string Seconds(double seconds) {
  if (seconds >= 100) return HumanSeconds(seconds);
  if (seconds >= 1) return absl::StrFormat("%.3g s", seconds);
  if (seconds >= 1e-3) return absl::StrFormat("%.3g ms", seconds * 1e3);
  return absl::StrFormat("%.3g us", seconds * 1e6);
}

// Numbers in order as "0-3, 6".
std::string Runs(const std::vector<int>& numbers) {
  std::vector<std::string> runs;
  for (size_t i = 0; i < numbers.size();) {
    size_t end = i + 1;
    while (end < numbers.size() && numbers[end] == numbers[end - 1] + 1) ++end;
    runs.push_back(end == i + 1 ? absl::StrCat(numbers[i])
                                : absl::StrCat(numbers[i], "-", numbers[end - 1]));
    i = end;
  }
  return absl::StrJoin(runs, ", ");
}

// "pipeline 0, tensor 0-1": coordinates that tell ranks of this mesh apart.
std::string Where(const MeshShape& mesh, const std::vector<int>& pipeline,
                  const std::vector<int>& tensor) {
  std::vector<std::string> axes;
  if (mesh.pipeline > 1) axes.push_back(absl::StrCat("pipeline ", Runs(pipeline)));
  if (mesh.tensor > 1) axes.push_back(absl::StrCat("tensor ", Runs(tensor)));
  return axes.empty() ? "every rank" : absl::StrJoin(axes, ", ");
}

// Lines of one name and value each, then "least .. most over ranks" where ranks differ.
class Table {
 public:
  explicit Table(const Plan& plan) : plan_(plan) {}

  void Row(const std::string& name, const RankPlan& shown, const char* mark,
           const std::function<int64_t(const RankPlan&)>& value) {
    int64_t least = value(plan_.ranks[0]), most = least;
    for (const RankPlan& rank : plan_.ranks) {
      least = std::min(least, value(rank));
      most = std::max(most, value(rank));
    }
    if (most == 0) return;
    const std::string range =
        least == most ? "" : absl::StrCat("   ranks: ", Bytes(least), " .. ", Bytes(most));
    const int64_t here = value(shown);
    absl::StrAppendFormat(&text_, "  %-18s %10s%s%s\n", name, here == 0 ? "-" : Bytes(here), mark,
                          range);
  }
  const std::string& text() const { return text_; }

 private:
  const Plan& plan_;
  std::string text_;
};

// Of what goes to disk.
template <class Row>
void BufferRows(const Row& row) {
  row("read ahead", "", [](const RankMemory& m) { return m.offload.passes_buffer; });
  row("or in the update", "", [](const RankMemory& m) { return m.offload.update_buffer; });
}

std::string MemoryText(const PlanFrame& frame, const Plan& plan) {
  const RankPlan& fullest = plan.fullest();
  Table table(plan);
  const auto row = [&](const char* name, const char* mark,
                       std::function<int64_t(const RankMemory&)> value) {
    table.Row(name, fullest, mark, [&](const RankPlan& rank) { return value(rank.memory); });
  };
  row("weights", "", [](const RankMemory& m) { return m.held.weights; });
  row("gradients", "", [](const RankMemory& m) { return m.held.gradients; });
  row("master weights", "", [](const RankMemory& m) { return m.held.master_weights; });
  row("optimizer states", "", [](const RankMemory& m) { return m.optimizer; });
  row("gathered units", "", [](const RankMemory& m) { return m.held.gathered; });
  row("held", "", [](const RankMemory& m) { return m.held_bytes(); });
  row("activations", " ~", [](const RankMemory& m) { return m.passes.activations; });
  row("logits", " ~", [](const RankMemory& m) { return m.passes.head; });
  if (!fullest.memory.on_device) BufferRows(row);
  row("total", " ~", [](const RankMemory& m) { return m.total_bytes(); });
  const std::string verdict = MemoryVerdict(plan, frame.hardware);
  return absl::StrCat(
      "memory of the fullest rank (", Where(plan.job.mesh, {fullest.pipeline}, fullest.tensor),
      "; ~ estimated, else exact)\n", table.text(), "  ",
      verdict.empty() ? absl::StrCat("fits: ", Bytes(fullest.memory.total_bytes()), " of ",
                                     HumanBytes(frame.hardware.memory_bytes))
                      : absl::StrCat("ERROR ", verdict),
      "\n");
}

// Ranks one after another along the pipeline that send the same.
struct Senders {
  std::vector<int> pipeline, tensor;
  Traffic traffic;
};

std::vector<Senders> SendersOf(const Plan& plan) {
  std::vector<Senders> all;
  for (const RankPlan& rank : plan.ranks) {
    const auto same = std::find_if(all.begin(), all.end(), [&](const Senders& s) {
      return s.traffic == rank.traffic && s.tensor == rank.tensor;
    });
    if (same != all.end())
      same->pipeline.push_back(rank.pipeline);
    else
      all.push_back({.pipeline = {rank.pipeline}, .tensor = rank.tensor, .traffic = rank.traffic});
  }
  return all;
}

std::string TrafficText(const Plan& plan) {
  if (plan.job.mesh.num_ranks() == 1) return "";
  constexpr size_t kMostRows = 12;
  const bool experts = plan.job.mesh.expert > 1, contexts = plan.job.mesh.context > 1;
  std::string text = absl::StrFormat(
      "sent a step by a rank (%s)\n  %-28s %10s %10s %10s %10s %10s %10s%s%s\n",
      experts ? "exact if tokens spread evenly over the ranks of the experts" : "exact", "",
      "shard", "replicate", "tensor", "pipeline", "tied", "total",
      contexts ? absl::StrFormat(" %10s", "context") : "",
      experts ? absl::StrFormat(" %10s", "experts") : "");
  const std::vector<Senders> all = SendersOf(plan);
  for (size_t i = 0; i < std::min(all.size(), kMostRows); ++i) {
    const Traffic& t = all[i].traffic;
    std::string line =
        absl::StrFormat("  %-28s", Where(plan.job.mesh, all[i].pipeline, all[i].tensor));
    for (int64_t bytes : {t.shard().bytes, t.replicate.bytes, t.tensor.bytes,
                          t.activations.bytes + t.gradients.bytes, t.tied.bytes, t.total_bytes()})
      absl::StrAppendFormat(&line, " %10s", bytes == 0 ? "-" : Bytes(bytes));
    if (contexts) absl::StrAppendFormat(&line, " %10s", Bytes(t.context.bytes));
    if (experts) absl::StrAppendFormat(&line, " %10s", Bytes(t.expert.bytes));
    absl::StrAppend(&text, line, "\n");
  }
  if (all.size() > kMostRows)
    absl::StrAppend(&text, "  and ", all.size() - kMostRows, " more kinds of ranks (--json)\n");
  absl::StrAppend(
      &text, "  rank 0, bytes_sent of metrics.jsonl: ", plan.ranks[0].traffic.total_bytes(), "\n");
  return text;
}

// "8 blocks each", or "9, 8, 7 blocks".
std::string StageSizes(const std::vector<BlockRange>& stages) {
  std::vector<int> sizes;
  for (const BlockRange& stage : stages) sizes.push_back(stage.size());
  if (std::count(sizes.begin(), sizes.end(), sizes[0]) == std::ssize(sizes))
    return absl::StrCat(sizes[0], " blocks each");
  return absl::StrCat(absl::StrJoin(sizes, ", "), " blocks");
}

std::string HostText(const Plan& plan) {
  const RankPlan& fullest = plan.fullest();
  if (fullest.memory.host_bytes() == 0) return "";
  Table table(plan);
  const auto row = [&](const char* name, const char* mark,
                       std::function<int64_t(const RankMemory&)> value) {
    table.Row(name, fullest, mark, [&](const RankPlan& rank) { return value(rank.memory); });
  };
  row("weights", "", [](const RankMemory& m) { return m.held.weights_in_host; });
  row("gradients", "", [](const RankMemory& m) { return m.held.gradients_in_host; });
  row("master weights", "", [](const RankMemory& m) { return m.held.master_weights_in_host; });
  row("optimizer states", "", [](const RankMemory& m) { return m.optimizer_in_host; });
  row("activations", " ~", [](const RankMemory& m) { return m.aside_in_host(); });
  BufferRows(row);
  const char* estimated = fullest.memory.aside_in_host() > 0 ? " ~" : "";
  row("total", estimated, [](const RankMemory& m) { return m.host_bytes(); });
  return absl::StrCat("in host memory, of that rank (~ estimated, else exact)\n", table.text());
}

std::string DiskText(const Plan& plan) {
  const RankPlan& fullest = plan.fullest();
  if (fullest.memory.disk_bytes() == 0) return "";
  Table table(plan);
  const auto row = [&](const char* name, const char* mark,
                       std::function<int64_t(const RankMemory&)> value) {
    table.Row(name, fullest, mark, [&](const RankPlan& rank) { return value(rank.memory); });
  };
  row("weights", "", [](const RankMemory& m) { return m.offload.weights; });
  row("master weights", "", [](const RankMemory& m) { return m.offload.master_weights; });
  row("optimizer states", "", [](const RankMemory& m) { return m.offload.optimizer; });
  row("activations", " ~", [](const RankMemory& m) { return m.aside_on_disk(); });
  const auto moved = [](const RankMemory& m) {
    return m.activations == OffloadTo::kDisk ? m.passes.moved : 0;
  };
  const char* estimated = moved(fullest.memory) > 0 ? " ~" : "";
  row("read a step", estimated, [&](const RankMemory& m) { return m.offload.read + moved(m); });
  row("written a step", estimated,
      [&](const RankMemory& m) { return m.offload.written + moved(m); });
  return absl::StrCat("on disk, of that rank (~ estimated, else exact)\n", table.text());
}

std::string PipelineText(const Plan& plan) {
  const PlanJob& job = plan.job;
  if (job.mesh.pipeline == 1) return "";
  constexpr int kMostRanks = 32;
  constexpr int64_t kMostPasses = 200'000;
  std::string text =
      absl::StrFormat("pipeline  %s, %d stages of %s, bubble %.1f%%\n", NameOf(job.schedule),
                      plan.stages.size(), StageSizes(plan.stages), 100 * plan.bubble);
  const int64_t passes = int64_t{job.mesh.pipeline} * job.chunks * job.micro_batches();
  if (job.mesh.pipeline > kMostRanks || passes > kMostPasses) return text;
  const auto schedule =
      MakeSchedule(job.schedule, job.mesh.pipeline, job.micro_batches(), job.chunks);
  if (!schedule.ok()) return text;
  const auto simulation = Simulate(*schedule, {});
  if (simulation.ok()) absl::StrAppend(&text, DrawSchedule(*schedule, *simulation));
  return text;
}

std::string TimeText(const PlanFrame& frame, const Plan& plan) {
  const StepTime time = EstimateStep(plan, frame.hardware);
  const double peak =
      frame.hardware.MatrixFlopsOf(plan.job.zero.compute_dtype) * plan.job.mesh.num_ranks();
  std::vector<std::string> parts;
  const auto add = [&](const char* name, double seconds) {
    if (seconds > 0) parts.push_back(absl::StrCat(name, " ", Seconds(seconds)));
  };
  add("products", time.products);
  add("memory", time.memory);
  add("tensor", time.tensor);
  add("context", time.context);
  add("experts", time.expert);
  add("shard", time.shard);
  add("replicate", time.replicate);
  add("pipeline", time.pipeline);
  add("bubble", time.bubble);
  add("optimizer", time.optimizer);
  return absl::StrFormat(
      "step      about %s: %s\n"
      "          %.4g tokens/s, %.1f%% of the products' peak\n"
      "assumed   products at %.0f%% of %.3g TFLOP/s a rank, %.3g GB/s of memory; %.3g GB/s "
      "inside a host of %d, %.3g GB/s between hosts;%s%s stages wait for the slowest\n",
      Seconds(time.total), absl::StrJoin(parts, ", "),
      static_cast<double>(plan.job.tokens_per_step()) / time.total,
      100 * plan.model_flops / time.total / peak, 100 * frame.hardware.matrix_efficiency,
      frame.hardware.MatrixFlopsOf(plan.job.zero.compute_dtype) * 1e-12,
      frame.hardware.memory_bytes_per_second * 1e-9,
      frame.hardware.inside_host.bytes_per_second * 1e-9, frame.hardware.ranks_per_host,
      frame.hardware.between_hosts.bytes_per_second * 1e-9,
      plan.job.zero.overlap ? " sharding beside the passes, nothing else overlaps;"
                            : " nothing overlaps;",
      plan.fullest().memory.disk_bytes() + plan.fullest().memory.host_bytes() > 0
          ? " what is offloaded takes no time to move;"
          : "");
}

}  // namespace

std::string MemoryVerdict(const Plan& plan, const Hardware& hardware) {
  const double bytes = static_cast<double>(plan.fullest().memory.total_bytes());
  if (bytes <= hardware.memory_bytes) return "";
  return absl::StrCat("does not fit: ", HumanBytes(bytes), " of ",
                      HumanBytes(hardware.memory_bytes));
}

std::string DescribeModel(const ModelConfig& config, at::ScalarType dtype, int64_t parameters) {
  const double number = static_cast<double>(parameters);
  return absl::StrFormat(
      "%s, %.2f%s parameters, computed in %s", config.json.value("model_type", "?"),
      number * (number < 1e9 ? 1e-6 : 1e-9), number < 1e9 ? "M" : "B", DtypeName(dtype));
}

std::string PlanText(const PlanFrame& frame, const Plan& plan) {
  return absl::StrCat(
      "plan      ", frame.recipe, " on ", frame.hardware.name, " (", frame.hardware.source,
      ")\n",                                                                               //
      "model     ", frame.model, "\n",                                                     //
      "mesh      ", plan.job.mesh.Equation(), ", ZeRO stage ", plan.job.zero.stage, "\n",  //
      "batch     ", frame.batch_equation, ", ", plan.job.tokens_per_step(), " tokens a step\n",
      MemoryText(frame, plan), HostText(plan), DiskText(plan), TrafficText(plan),
      PipelineText(plan), TimeText(frame, plan));
}

std::string SuggestionsText(const PlanFrame& frame, const Suggestions& suggestions) {
  std::string text = absl::StrFormat(
      "plan      %s on %s\nmodel     %s\ntried     %d layouts, %d take at most %.0f%% of %s\n",
      frame.recipe, frame.hardware.name, frame.model, suggestions.tried, suggestions.fitting,
      100 * kUsableMemory, HumanBytes(frame.hardware.memory_bytes));
  if (suggestions.best.empty()) {
    absl::StrAppend(&text, "ERROR     none fits: the leanest takes ",
                    HumanBytes(suggestions.least_bytes), " of ",
                    HumanBytes(frame.hardware.memory_bytes), " a rank\n");
    return text;
  }
  absl::StrAppendFormat(&text, "  %9s %9s %9s %9s %7s %6s  %9s %5s %5s %6s %8s %-9s\n", "step",
                        "tokens/s", "memory", "sent", "bubble", "repl.", "shard", "tens.", "pipe.",
                        "ZeRO", "batch", "recompute");
  static constexpr const char* kRecompute[] = {"none", "selective", "full"};
  for (const Suggestion& suggestion : suggestions.best) {
    const Plan& plan = suggestion.plan;
    int64_t sent = 0;
    for (const RankPlan& rank : plan.ranks) sent = std::max(sent, rank.traffic.total_bytes());
    absl::StrAppendFormat(&text, "  %9s %9.4g %9s %9s %6.1f%% %6d  %9d %5d %5d %6d %8s %-9s\n",
                          Seconds(suggestion.time.total),
                          static_cast<double>(plan.job.tokens_per_step()) / suggestion.time.total,
                          Bytes(plan.fullest().memory.total_bytes()), Bytes(sent),
                          100 * plan.bubble, plan.job.mesh.replicate, plan.job.mesh.shard,
                          plan.job.mesh.tensor, plan.job.mesh.pipeline, plan.job.zero.stage,
                          absl::StrCat(plan.job.sequences, " x ", plan.job.micro_batches()),
                          kRecompute[static_cast<int>(plan.job.recompute)]);
  }
  absl::StrAppend(&text,
                  "memory and sent are the fullest rank's; batch: sequences x micro-batches ",
                  "a rank\nthe first: ", absl::StrJoin(suggestions.best[0].overrides, " "), "\n");
  return text;
}

}  // namespace shoal
