#include "trainer/plan/hardware.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/nearest_name.h"
#include "kernels/matmul.h"

namespace shoal {
namespace {

// Peaks as the makers state them, dense; float32 without TF32. Latencies and the efficiency are
// assumptions, in the range of what NCCL and whole models are commonly seen to reach.
std::vector<Hardware> BuiltIn() {
  const double kGiga = 1e9, kTera = 1e12;
  // NVIDIA A100 Tensor Core GPU datasheet (A100 80GB SXM): 312 TFLOPS bfloat16, 19.5 float32, 19.5
  // float64 (tensor cores), 80 GB at 2,039 GB/s, NVLink 600 GB/s, both directions together. DGX
  // A100 datasheet: 8 GPUs, a 200 Gb/s InfiniBand port each.
  Hardware a100{
      .name = "a100",
      .source = "A100 80GB SXM, 8 a host, 200 Gb/s InfiniBand each: datasheets",
      .ranks_per_host = 8,
      .memory_bytes = 80 * kGiga,
      .memory_bytes_per_second = 2.039 * kTera,
      .matrix_flops = {.float32 = 19.5 * kTera, .bfloat16 = 312 * kTera, .float64 = 19.5 * kTera},
      .inside_host = {.bytes_per_second = 300 * kGiga, .latency_seconds = 5e-6},
      .between_hosts = {.bytes_per_second = 25 * kGiga, .latency_seconds = 10e-6}};
  // NVIDIA H100 Tensor Core GPU datasheet (H100 SXM): 1,979 TFLOPS bfloat16 with sparsity, half of
  // it dense, 67 float32, 67 float64 (tensor cores), 80 GB at 3.35 TB/s, NVLink 900 GB/s, both
  // directions together. DGX H100 datasheet: 8 GPUs, a 400 Gb/s InfiniBand port each.
  Hardware h100{
      .name = "h100",
      .source = "H100 SXM, 8 a host, 400 Gb/s InfiniBand each: datasheets",
      .ranks_per_host = 8,
      .memory_bytes = 80 * kGiga,
      .memory_bytes_per_second = 3.35 * kTera,
      .matrix_flops = {.float32 = 67 * kTera, .bfloat16 = 989.5 * kTera, .float64 = 67 * kTera},
      .inside_host = {.bytes_per_second = 450 * kGiga, .latency_seconds = 5e-6},
      .between_hosts = {.bytes_per_second = 50 * kGiga, .latency_seconds = 10e-6}};
  // NVIDIA H200 Tensor Core GPU datasheet (H200 SXM): as H100 SXM, 141 GB at 4.8 TB/s.
  Hardware h200 = h100;
  h200.name = "h200";
  h200.source = "H200 SXM, 8 a host, 400 Gb/s InfiniBand each: datasheets";
  h200.memory_bytes = 141 * kGiga;
  h200.memory_bytes_per_second = 4.8 * kTera;
  return {a100, h100, h200};
}

// Of the machine, or what a container (cgroup v2) allows, if that is less.
double MemoryBytes() {
  double total =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  std::ifstream limit("/sys/fs/cgroup/memory.max");
  if (double bytes = 0; limit >> bytes && bytes > 0) total = std::min(total, bytes);
  return total;
}

}  // namespace

double Hardware::MatrixFlopsOf(at::ScalarType dtype) const {
  if (dtype == at::kDouble) return matrix_flops.float64;
  // These accelerators multiply both 16-bit types alike; this program widens float16 on processors.
  return c10::isReducedFloatingType(dtype) ? matrix_flops.bfloat16 : matrix_flops.float32;
}

const Hardware::Link& Hardware::LinkOver(int64_t extent) const {
  return extent <= ranks_per_host ? inside_host : between_hosts;
}

std::vector<std::string> KnownHardware() {
  std::vector<std::string> names;
  for (const Hardware& hardware : BuiltIn()) names.push_back(hardware.name);
  return names;
}

absl::StatusOr<Hardware> FindHardware(FileSystem& files, const std::string& name_or_path) {
  for (const Hardware& hardware : BuiltIn()) {
    if (hardware.name == name_or_path) return hardware;
  }
  const bool is_path = absl::StrContains(name_or_path, '/') ||
                       absl::EndsWith(name_or_path, ".yaml") ||
                       absl::EndsWith(name_or_path, ".yml");
  if (is_path) {
    constexpr int64_t kMaxBytes = 1 << 20;
    SHOAL_ASSIGN_OR_RETURN(const std::string text, ReadFile(files, name_or_path, kMaxBytes));
    return ParseHardware(text, name_or_path);
  }
  std::vector<std::string> names = KnownHardware();
  names.push_back("cpu");
  const std::string nearest = NearestName(name_or_path, names);
  return absl::InvalidArgumentError(absl::StrCat(
      "unknown hardware ", name_or_path, ", expected ", absl::StrJoin(names, ", "),
      " or a YAML file", nearest.empty() ? "" : absl::StrCat(", did you mean ", nearest, "?")));
}

Hardware MeasureThisMachine(const MeasureOptions& options) {
  const double share = 1.0 / options.ranks;
  const double flops = MeasureMatMulPeak(options.dtype, options.cores) * share;
  const MemoryBandwidth memory = MeasureMemoryBandwidth(options.cores);
  Hardware hardware{.name = "cpu",
                    .source = absl::StrCat("this machine, measured, ", options.cores, " cores for ",
                                           options.ranks, " ranks"),
                    .ranks_per_host = options.ranks,
                    .memory_bytes = MemoryBytes() * share,
                    .memory_bytes_per_second = 2 * memory.copy_bytes_per_second * share,
                    .matrix_flops = {},
                    .matrix_efficiency = 0.8};
  Hardware::MatrixFlops& peaks = hardware.matrix_flops;
  (options.dtype == at::kDouble                ? peaks.float64
   : c10::isReducedFloatingType(options.dtype) ? peaks.bfloat16
                                               : peaks.float32) = flops;
  // Ranks read one another's memory. A call is a few turns of waiting for all (parallel/comm/).
  hardware.inside_host = {.bytes_per_second = memory.copy_bytes_per_second * share,
                          .latency_seconds = 20e-6};
  hardware.between_hosts = hardware.inside_host;  // All ranks are on this one
  return hardware;
}

}  // namespace shoal
