#include "parallel/comm/nccl_communicator.h"

#include <cuda_runtime_api.h>
#include <sysexits.h>

#include <cstdio>
#include <cstring>
#include <functional>
#include <thread>
#include <utility>

#include <ATen/ops/empty.h>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "parallel/comm/nccl_collectives.h"

namespace shoal {
namespace {

// So that every rank that waits can say for what before the first ends all.
constexpr auto kHearOthers = std::chrono::seconds(1);

// 13010: 13.1
std::string CudaVersion(int version) {
  return absl::StrCat(version / 1000, ".", version % 1000 / 10);
}

std::function<void(const std::string& problem)> EndsJobOf(std::shared_ptr<Communicator> host) {
  return [host = std::move(host)](const std::string& problem) {
    std::fprintf(stderr, "shoal: rank %d: %s\n", host->rank(), problem.c_str());
    std::this_thread::sleep_for(kHearOthers);
    host->Abort(EX_PROTOCOL, "");  // A rank that did not come
  };
}

ncclUniqueId SharedId(Communicator& host) {
  ncclUniqueId id{};
  if (host.rank() == 0) id = NcclHandle::NewId();
  const std::string shared =
      BroadcastString(host, std::string(reinterpret_cast<const char*>(&id), sizeof(id)), 0);
  std::memcpy(&id, shared.data(), sizeof(id));
  return id;
}

}  // namespace

std::vector<Gpu> ListGpus() {
  int count = 0;
  std::vector<Gpu> gpus;
  if (cudaGetDeviceCount(&count) != cudaSuccess) return gpus;
  for (int index = 0; index < count; ++index) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, index) != cudaSuccess) continue;
    gpus.push_back({.name = properties.name,
                    .uuid = absl::BytesToHexString(
                        absl::string_view(properties.uuid.bytes, sizeof(properties.uuid.bytes))),
                    .memory_bytes = static_cast<int64_t>(properties.totalGlobalMem),
                    .major = properties.major,
                    .minor = properties.minor});
  }
  return gpus;
}

std::string CudaVersions() {
  int runtime = 0, driver = 0, nccl = 0;
  cudaRuntimeGetVersion(&runtime);
  cudaDriverGetVersion(&driver);  // 0: no driver
  ncclGetVersion(&nccl);
  return absl::StrCat(
      "CUDA ", CudaVersion(runtime), ", ",
      driver == 0 ? "no driver" : absl::StrCat("driver for CUDA ", CudaVersion(driver)), ", NCCL ",
      nccl / 10000, ".", nccl / 100 % 100, ".", nccl % 100);
}

absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(
    std::unique_ptr<Communicator> host, at::Device device, const CommOptions& options) {
  const std::shared_ptr<Communicator> shared = std::move(host);
  const absl::Duration period =
      std::clamp(options.timeout / 20, absl::Milliseconds(5), absl::Seconds(1));
  const auto end_job = EndsJobOf(shared);
  // All ranks know what the ledgers find; one says it.
  const auto end_job_once = [end_job, tells = shared->rank() == 0](const std::string& problem) {
    if (tells) end_job(problem);
  };
  try {
    NcclHandle::Place place = {.device = device,
                               .watch = std::make_shared<NcclWatch>(device, period, end_job),
                               .ledger = std::make_shared<CallLedger>(
                                   shared->Split(0, shared->rank()), period, end_job_once),
                               .timeout = options.timeout};
    auto handle = std::make_unique<NcclHandle>(place);
    handle->Begin(SharedId(*shared), shared->size(), shared->rank());
    handle->AwaitReady([] { return std::string("starting NCCL"); });
    return std::make_unique<NcclCommunicator>(shared, std::move(handle), std::move(place), "all",
                                              options);
  } catch (const CommError& error) {
    return absl::UnavailableError(error.what());
  }
}

}  // namespace shoal
