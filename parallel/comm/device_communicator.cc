#include "parallel/comm/device_communicator.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <set>
#include <utility>

#include <c10/core/AutogradState.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "core/status.h"
#include "parallel/comm/nccl_communicator.h"
#include "parallel/comm/staged_communicator.h"

namespace shoal {
namespace {

// The kernel's boot, which containers of one machine share, and the host's name where there is no
// /proc.
std::string HostIdentity() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  return boot.empty() ? std::string(name.data()) : boot;
}

std::vector<RankPlace> GatherPlaces(Communicator& host) {
  std::vector<std::string> mine = {HostIdentity()};
  for (const Gpu& gpu : ListGpus()) mine.push_back(gpu.uuid);
  std::vector<RankPlace> places;
  for (const std::string& text : AllGatherStrings(host, absl::StrJoin(mine, "\n"))) {
    std::vector<std::string> lines = absl::StrSplit(text, '\n');
    std::string name = std::move(lines.front());
    lines.erase(lines.begin());
    places.push_back({std::move(name), std::move(lines)});
  }
  return places;
}

// How many ranks of this host come before this one.
int NumberOnHost(const std::vector<RankPlace>& places, int rank) {
  return static_cast<int>(
      std::count_if(places.begin(), places.begin() + rank,
                    [&](const RankPlace& other) { return other.host == places[rank].host; }));
}

int GpuOf(const std::vector<RankPlace>& places, int rank) {
  return NumberOnHost(places, rank) % static_cast<int>(places[rank].gpus.size());
}

// The same on every rank: they run one program.
bool HasCuda() { return c10::impl::hasDeviceGuardImpl(at::kCUDA); }

}  // namespace

absl::Status CheckBuiltFor(DeviceRequest request) {
  if (request != DeviceRequest::kCuda || HasCuda()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      "run.device: cuda, but this build has no CUDA: build with the `cuda` preset, or set "
      "run.device: cpu");
}

int NumDevices() {
  if (!HasCuda()) return 0;
  return c10::impl::VirtualGuardImpl(at::kCUDA).deviceCount();
}

DevicePlan PlanDevices(const std::vector<RankPlace>& places, int rank) {
  std::set<std::string> taken;
  for (int other = 0; other < std::ssize(places); ++other) {
    SHOAL_CHECK(!places[other].gpus.empty()) << "rank " << other << " sees no GPU";
    taken.insert(places[other].gpus[GpuOf(places, other)]);
  }
  return {.gpu = GpuOf(places, rank), .each_its_own = taken.size() == places.size()};
}

absl::StatusOr<std::unique_ptr<Communicator>> MakeDeviceCommunicator(
    std::unique_ptr<Communicator> host, DeviceRequest request, const CommOptions& options) {
  if (request == DeviceRequest::kCpu) return host;
  SHOAL_RETURN_IF_ERROR(CheckBuiltFor(request));
  if (!HasCuda()) return host;
  const std::vector<RankPlace> places = GatherPlaces(*host);
  for (size_t rank = 0; rank < places.size(); ++rank) {
    if (!places[rank].gpus.empty()) continue;
    if (request == DeviceRequest::kAuto) return host;
    return absl::FailedPreconditionError(absl::StrCat(
        "run.device: cuda, but ", places.size() == 1 ? "this machine" : absl::StrCat("rank ", rank),
        " sees no GPU (nvidia-smi lists them; CUDA_VISIBLE_DEVICES hides some): set run.device: "
        "cpu"));
  }
  const DevicePlan plan = PlanDevices(places, host->rank());
  const at::Device device(at::kCUDA, static_cast<at::DeviceIndex>(plan.gpu));
  UseDevice(device);
  if (host->size() > 1 && plan.each_its_own && options.transport == CommTransport::kAuto)
    return MakeNcclCommunicator(std::move(host), device, options);
  return MakeStagedCommunicator(std::move(host), device);
}

void UseDevice(at::Device device) {
  c10::impl::VirtualGuardImpl(device.type()).setDevice(device);
  c10::AutogradState::get_tls_state().set_multithreading_enabled(false);
}

}  // namespace shoal
