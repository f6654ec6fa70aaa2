#include "launch/doctor_machine.h"

#include <sched.h>
#include <sys/resource.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <fstream>
#include <optional>

#include <ATen/Version.h>
#include <ATen/cpu/Utils.h>
#include <google/protobuf/stubs/common.h>
#include <torch/version.h>
#include <oneapi/dnnl/dnnl.hpp>

#include "absl/base/config.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "kernels/matmul.h"
#include "parallel/comm/nccl_communicator.h"

namespace shoal {
namespace {

constexpr double kMiB = 1024.0 * 1024;
constexpr double kGiB = 1024 * kMiB;

// The value of the first line "key<spaces>: value" of a /proc file.
std::string ProcField(const std::string& path, absl::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const std::vector<absl::string_view> parts = absl::StrSplit(line, absl::MaxSplits(':', 1));
    if (parts.size() == 2 && absl::StripAsciiWhitespace(parts[0]) == key) {
      return std::string(absl::StripAsciiWhitespace(parts[1]));
    }
  }
  return "";
}

// "16284672 kB" of /proc/meminfo, in bytes.
double MemInfoBytes(absl::string_view key) {
  const std::string field = ProcField("/proc/meminfo", key);
  double kib = 0;
  if (!absl::SimpleAtod(absl::StripSuffix(field, " kB"), &kib)) return 0;
  return kib * 1024;
}

// What a container allows, if less than the machine has (cgroup v2).
std::optional<double> ContainerMemoryLimit() {
  std::ifstream file("/sys/fs/cgroup/memory.max");
  double bytes = 0;
  if (std::string text; file >> text && absl::SimpleAtod(text, &bytes)) return bytes;
  return std::nullopt;
}

Fact MemoryFact() {
  double total = MemInfoBytes("MemTotal");
  const double available = MemInfoBytes("MemAvailable");
  std::string note;
  if (const auto limit = ContainerMemoryLimit(); limit && *limit < total) {
    total = *limit;
    note = " (the container's limit)";
  }
  Fact fact = {
      .name = "memory",
      .text = absl::StrCat(FormatBytes(total), note, ", ", FormatBytes(available), " available"),
      .value = {{"total_bytes", total}, {"available_bytes", available}},
      .health = Health::kOk};
  if (available < kGiB) {
    fact.health = Health::kWarning;
    fact.cure = "less than 1 GiB is available: end other programs, or train a smaller model";
  }
  return fact;
}

Fact SharedMemoryFact() {
  struct statvfs stats;
  if (statvfs("/dev/shm", &stats) != 0) {
    return {.name = "/dev/shm",
            .text = "not there",
            .health = Health::kFailure,
            .cure = "Open MPI's ranks of one host meet there: mount a tmpfs on /dev/shm"};
  }
  const double total = static_cast<double>(stats.f_blocks) * stats.f_frsize;
  const double free = static_cast<double>(stats.f_bavail) * stats.f_frsize;
  Fact fact = {.name = "/dev/shm",
               .text = absl::StrCat(FormatBytes(total), ", ", FormatBytes(free), " free"),
               .value = {{"total_bytes", total}, {"free_bytes", free}},
               .health = Health::kOk};
  if (free < 64 * kMiB) {
    fact.health = Health::kWarning;
    fact.cure =
        "Open MPI's ranks of one host meet there: enlarge it (mount -o remount,size=50% /dev/shm, "
        "or "
        "the container's --shm-size)";
  }
  return fact;
}

Fact LimitFact(const std::string& name, int resource, double unit, const char* unit_name) {
  struct rlimit limit;
  getrlimit(static_cast<__rlimit_resource>(resource), &limit);
  if (limit.rlim_cur == RLIM_INFINITY)
    return {.name = name, .text = "unlimited", .value = "unlimited"};
  const double value = static_cast<double>(limit.rlim_cur) / unit;
  return {
      .name = name, .text = absl::StrFormat("%.0f%s", value, unit_name), .value = limit.rlim_cur};
}

Fact OpenFilesFact() {
  Fact fact = LimitFact("open files", RLIMIT_NOFILE, 1, "");
  fact.health = Health::kOk;
  if (fact.value.is_number() && fact.value.get<double>() < 1024) {
    fact.health = Health::kWarning;
    fact.cure = "raise it for many ranks: ulimit -n 4096";
  }
  return fact;
}

Fact AddressSpaceFact() {
  Fact fact = LimitFact("address space", RLIMIT_AS, kGiB, " GiB");
  fact.health = Health::kOk;
  if (fact.value.is_number()) {
    fact.health = Health::kWarning;
    fact.cure = "shared windows and libraries reserve far more than they use: ulimit -v unlimited";
  }
  return fact;
}

// What oneDNN's kernels are generated for.
const char* OneDnnIsa() {
  switch (dnnl::get_effective_cpu_isa()) {
    case dnnl::cpu_isa::sse41:
      return "SSE4.1";
    case dnnl::cpu_isa::avx:
      return "AVX";
    case dnnl::cpu_isa::avx2:
      return "AVX2";
    case dnnl::cpu_isa::avx2_vnni:
      return "AVX2 with VNNI";
    case dnnl::cpu_isa::avx512_core:
      return "AVX-512";
    case dnnl::cpu_isa::avx512_core_vnni:
      return "AVX-512 with VNNI";
    case dnnl::cpu_isa::avx512_core_bf16:
      return "AVX-512 with VNNI and bfloat16";
    case dnnl::cpu_isa::avx512_core_amx:
      return "AVX-512 with AMX (bfloat16, int8)";
    default:
      return "plain";
  }
}

Fact InstructionsFact() {
  Fact fact = {
      .name = "instructions",
      .text = absl::StrCat(OneDnnIsa(), " (oneDNN), ", at::get_cpu_capability(), " (libtorch)"),
      .value = {{"onednn", OneDnnIsa()}, {"libtorch", at::get_cpu_capability()}},
      .health = Health::kOk};
  if (dnnl::get_effective_cpu_isa() < dnnl::cpu_isa::avx2) {
    fact.health = Health::kWarning;
    fact.cure =
        "training is slow without AVX2: use a processor from 2015 or later, or let the virtual "
        "machine pass its host's instructions through";
  }
  return fact;
}

Fact LibraryFact(const std::string& name, const std::string& compiled, const std::string& loaded) {
  if (compiled == loaded) return {.name = name, .text = loaded, .value = loaded};
  return {.name = name,
          .text = absl::StrCat(loaded, ", built against ", compiled),
          .value = loaded,
          .health = Health::kWarning,
          .cure = "build Shoal again after upgrading its libraries"};
}

Fact CudaFact() {
  const std::string versions = CudaVersions();
  if (versions.empty())
    return {.name = "CUDA", .text = "not built in (the `cuda` preset builds it in)"};
  return {.name = "CUDA", .text = versions, .value = versions};
}

std::string ProtobufVersion(int version) {
  return google::protobuf::internal::VersionString(version);
}

}  // namespace

int UsableCores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

ReportSection VersionsSection() {
  const dnnl_version_t* onednn = dnnl_version();
  const std::string git = SHOAL_GIT_DESCRIBE;
  ReportSection section = {.name = "versions"};
  section.facts = {
      {.name = "shoal",
       .text = absl::StrCat(SHOAL_VERSION, git.empty() ? "" : absl::StrCat(" (", git, ")")),
       .value = {{"version", SHOAL_VERSION}, {"git", git}}},
#ifdef __clang__
      {.name = "compiler", .text = absl::StrCat("Clang ", __clang_version__)},
#else
      {.name = "compiler", .text = absl::StrCat("GCC ", __VERSION__)},
#endif
      {.name = "libtorch", .text = TORCH_VERSION, .value = TORCH_VERSION},
      LibraryFact(
          "oneDNN",
          absl::StrFormat("%d.%d.%d", DNNL_VERSION_MAJOR, DNNL_VERSION_MINOR, DNNL_VERSION_PATCH),
          absl::StrFormat("%d.%d.%d", onednn->major, onednn->minor, onednn->patch)),
      {.name = "Abseil",
       .text = absl::StrCat(ABSL_LTS_RELEASE_VERSION, ".", ABSL_LTS_RELEASE_PATCH_LEVEL)},
      {.name = "protobuf", .text = ProtobufVersion(GOOGLE_PROTOBUF_VERSION)},
      CudaFact(),
  };
  return section;
}

ReportSection MachineSection() {
  const std::string model = ProcField("/proc/cpuinfo", "model name");
  const int cores = UsableCores();
  ReportSection section = {.name = "machine"};
  section.facts = {
      {.name = "processor", .text = model.empty() ? "unknown" : model, .value = model},
      {.name = "cores", .text = absl::StrCat(cores, " usable"), .value = cores},
      InstructionsFact(),
      MemoryFact(),
      SharedMemoryFact(),
      OpenFilesFact(),
      AddressSpaceFact(),
      LimitFact("locked memory", RLIMIT_MEMLOCK, kMiB, " MiB"),
      LimitFact("stack", RLIMIT_STACK, kMiB, " MiB"),
  };
  return section;
}

ReportSection GpusSection() {
  ReportSection section = {.name = "gpus"};
  for (const Gpu& gpu : ListGpus()) {
    section.facts.push_back(
        {.name = absl::StrCat("GPU ", section.facts.size()),
         .text = absl::StrFormat("%s, %s, compute capability %d.%d", gpu.name,
                                 FormatBytes(static_cast<double>(gpu.memory_bytes)), gpu.major,
                                 gpu.minor),
         .value = {{"name", gpu.name}, {"memory_bytes", gpu.memory_bytes}},
         .health = Health::kOk});
  }
  if (section.facts.empty()) {
    section.facts.push_back(
        {.name = "number",
         .text = CudaVersions().empty() ? "not looked for: CUDA is not built in" : "none",
         .value = 0});
  }
  return section;
}

ReportSection RatesSection() {
  ReportSection section = {.name = "rates"};
  const int cores = UsableCores();
  std::vector<int> thread_counts = {1};
  if (cores > 1) thread_counts.push_back(cores);
  const std::pair<at::ScalarType, const char*> dtypes[] = {{at::kFloat, "float32"},
                                                           {at::kBFloat16, "bfloat16"}};
  for (int threads : thread_counts) {
    const std::string suffix = absl::StrCat(threads, threads == 1 ? " thread" : " threads");
    for (const auto& [dtype, name] : dtypes) {
      const double rate = MeasureMatMulPeak(dtype, threads);
      section.facts.push_back({.name = absl::StrCat("matrix product ", name, ", ", suffix),
                               .text = FormatFlops(rate),
                               .value = rate});
    }
  }
  for (int threads : thread_counts) {
    const MemoryBandwidth bandwidth = MeasureMemoryBandwidth(threads);
    section.facts.push_back(
        {.name = absl::StrCat("memory, ", threads, threads == 1 ? " thread" : " threads"),
         .text = absl::StrCat(FormatBandwidth(bandwidth.read_bytes_per_second), " read, ",
                              FormatBandwidth(bandwidth.copy_bytes_per_second), " copied"),
         .value = {{"read_bytes_per_second", bandwidth.read_bytes_per_second},
                   {"copy_bytes_per_second", bandwidth.copy_bytes_per_second}}});
  }
  return section;
}

}  // namespace shoal
