#include "parallel/comm/local_communicator.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/status.h"
#include "parallel/comm/host_collectives.h"

namespace shoal {
namespace {

// Anonymous memory: zero-filled, and touched page by page only where it is used.
std::shared_ptr<std::byte> MapRegion(int64_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED)
    throw CommError(absl::StrCat("cannot map ", bytes, " bytes for rank threads"));
  return {static_cast<std::byte*>(memory), [bytes](std::byte* begin) { munmap(begin, bytes); }};
}

// One for all rank threads: they share an address space, so a location is an address.
class LocalBackend final : public HostBackend {
 public:
  const char* name() const override { return "local"; }

  Location Locate(const std::byte* data) override {
    return {.segment = 1, .offset = static_cast<int64_t>(reinterpret_cast<intptr_t>(data))};
  }
  const std::byte* Resolve(const Location& location) override {
    return reinterpret_cast<const std::byte*>(static_cast<intptr_t>(location.offset));
  }
  at::Tensor Allocate(int64_t numel, at::ScalarType dtype) override {
    return at::empty({numel}, dtype);
  }

  std::pair<std::shared_ptr<std::byte>, Location> CreateRegion(int size) override {
    std::shared_ptr<std::byte> region = MapRegion(HostGroup::RegionBytes(size));
    std::lock_guard lock(mutex_);
    regions_.push_back({region, size});
    return {region, Locate(region.get())};
  }
  std::shared_ptr<std::byte> OpenRegion(const Location& location, int size) override {
    std::lock_guard lock(mutex_);
    for (const auto& [weak, region_size] : regions_) {
      std::shared_ptr<std::byte> region = weak.lock();
      if (region != nullptr && region.get() == Resolve(location)) return region;
    }
    throw CommError("Split: the new group's memory is gone");
  }

  // Ends all waits of all ranks in all groups. `reason` of the first call stands.
  void BreakAll(const std::string& reason) {
    std::lock_guard lock(mutex_);
    for (const auto& [weak, size] : regions_) {
      if (std::shared_ptr<std::byte> region = weak.lock()) {
        HostGroup(std::move(region), size, 0, absl::InfiniteDuration()).Break(reason);
      }
    }
  }

  [[noreturn]] void Abort(int exit_code, const std::string& reason) override {
    if (!reason.empty()) std::fprintf(stderr, "shoal: %s\n", reason.c_str());
    std::fflush(nullptr);
    std::_Exit(exit_code);
  }

 private:
  struct Region {
    std::weak_ptr<std::byte> memory;
    int size;
  };
  std::mutex mutex_;
  std::vector<Region> regions_;
};

absl::Status Call(const std::function<absl::Status(Communicator&)>& fn, Communicator& comm) {
  try {
    return fn(comm);
  } catch (const std::exception& error) {
    return absl::InternalError(error.what());
  } catch (...) {
    return absl::InternalError("unknown exception");
  }
}

}  // namespace

absl::Status RunRanks(int num_ranks, std::function<absl::Status(Communicator&)> fn,
                      const CommOptions& options) {
  SHOAL_CHECK(num_ranks >= 1) << "RunRanks with " << num_ranks << " ranks";
  auto backend = std::make_shared<LocalBackend>();
  const std::shared_ptr<std::byte> region = backend->CreateRegion(num_ranks).first;
  std::vector<absl::Status> results(num_ranks);
  std::mutex mutex;
  std::string first_failure;
  auto run = [&](int rank) {
    at::set_num_threads(1);
    HostCommunicator comm(backend, region, num_ranks, rank, options);
    results[rank] = Call(fn, comm);
    if (results[rank].ok()) return;
    std::lock_guard lock(mutex);
    if (!first_failure.empty()) return;
    first_failure =
        absl::StrCat("rank ", rank, " failed: ", results[rank].message().substr(0, 1500));
    backend->BreakAll(first_failure);
  };
  std::vector<std::thread> threads;
  for (int rank = 0; rank < num_ranks; ++rank) threads.emplace_back(run, rank);
  for (std::thread& thread : threads) thread.join();
  for (int rank = 0; rank < num_ranks; ++rank) {
    // Not those that only heard of another's failure.
    if (results[rank].ok() || absl::StrContains(results[rank].message(), first_failure)) continue;
    return Annotate(results[rank], absl::StrCat("rank ", rank));
  }
  return absl::OkStatus();
}

std::unique_ptr<Communicator> MakeSingleRankCommunicator() {
  auto backend = std::make_shared<LocalBackend>();
  auto region = backend->CreateRegion(1).first;
  return std::make_unique<HostCommunicator>(std::move(backend), std::move(region), 1, 0,
                                            CommOptions{});
}

}  // namespace shoal
