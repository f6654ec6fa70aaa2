#include "parallel/comm/nccl_handle.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>
#include <utility>

#include <c10/core/impl/VirtualGuardImpl.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace shoal {
namespace {

// How long a task may take to end after a call has thrown.
constexpr absl::Duration kFromErrorToEnd = absl::Seconds(60);

bool Accepted(ncclResult_t result) { return result == ncclSuccess || result == ncclInProgress; }

}  // namespace

c10::Stream CurrentStream(at::Device device) {
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device);
}

ncclUniqueId NcclHandle::NewId() {
  ncclUniqueId id;
  if (const ncclResult_t result = ncclGetUniqueId(&id); result != ncclSuccess)
    throw CommError(absl::StrCat("NCCL: ", ncclGetErrorString(result), ": ", ncclGetLastError({})));
  return id;
}

NcclHandle::NcclHandle(Place place) : place_(std::move(place)) { place_.watch->Add(this); }

NcclHandle::~NcclHandle() {
  const absl::Time deadline = absl::Now() + place_.timeout;
  const auto in_time = [&](const std::function<bool()>& done) {
    while (!done()) {
      if (absl::Now() > deadline) return false;
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    return true;
  };
  const bool quiet = in_time([this] { return Settled(); }) && broken_.empty();
  if (const ncclComm_t comm = Surrender(); comm != nullptr) {
    ncclResult_t state = quiet ? ncclCommFinalize(comm) : ncclInternalError;
    const bool asked = in_time([&] {
      if (state == ncclInProgress) ncclCommGetAsyncError(comm, &state);
      return state != ncclInProgress;
    });
    if (asked && state == ncclSuccess) {
      ncclCommDestroy(comm);
    } else {
      {  // Should even this hang, the watch ends the job
        const std::lock_guard lock(mutex_);
        if (broken_.empty()) Break("NCCL does not end its calls");
      }
      ncclCommAbort(comm);
    }
  }
  place_.watch->Remove(this);
}

bool NcclHandle::Settled() {
  const std::lock_guard lock(mutex_);
  try {
    DropFinished(absl::Now());
  } catch (const std::exception&) {  // Of CUDA; told to whoever asks for results
    if (broken_.empty()) Break("the GPU has failed");
  }
  if (place_.ledger->disagreed() && broken_.empty()) Break("ranks disagree");
  return calls_.empty() || !broken_.empty();
}

ncclComm_t NcclHandle::Surrender() {
  const std::lock_guard lock(mutex_);
  return std::exchange(comm_, nullptr);
}

// A part comes from a thread of NCCL's own.
ncclComm_t NcclHandle::Comm() { return std::atomic_ref(comm_).load(std::memory_order_acquire); }

void NcclHandle::Break(std::string reason) {
  broken_ = std::move(reason);
  broken_since_ = absl::Now();
}

void NcclHandle::Fail(std::string reason) {
  if (broken_.empty()) Break(std::move(reason));
  throw CommError(broken_);
}

void NcclHandle::Check(ncclResult_t result) {
  if (!broken_.empty()) throw CommError(broken_);
  if (Accepted(result)) return;
  Fail(absl::StrCat("NCCL: ", ncclGetErrorString(result), ": ", ncclGetLastError(comm_)));
}

void NcclHandle::Begin(const ncclUniqueId& id, int size, int rank) {
  const std::lock_guard lock(mutex_);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  Check(ncclCommInitRankConfig(&comm_, size, id, rank, &config));
}

void NcclHandle::SplitInto(NcclHandle& part, int color, int key) {
  {
    const std::lock_guard lock(mutex_);
    Check(ncclCommSplit(comm_, color < 0 ? NCCL_SPLIT_NOCOLOR : color, key, &part.comm_, nullptr));
  }
  const auto what = [] { return std::string("Split"); };
  AwaitReady(what);
  if (color >= 0) part.AwaitReady(what);
}

bool NcclHandle::Ready() {
  place_.ledger->ThrowIfDisagreed();
  const std::lock_guard lock(mutex_);
  if (!broken_.empty()) throw CommError(broken_);
  if (Comm() == nullptr) return false;
  ncclResult_t state = ncclSuccess;
  Check(ncclCommGetAsyncError(comm_, &state));
  Check(state);
  return state == ncclSuccess;
}

void NcclHandle::AwaitReady(const std::function<std::string()>& what) {
  constexpr int kPollsBeforeSleep = 1000;
  const absl::Time deadline = absl::Now() + place_.timeout;
  for (int polls = 0; !Ready(); ++polls) {
    if (polls < kPollsBeforeSleep) {
      std::this_thread::yield();
      continue;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(50));
    if (absl::Now() < deadline) continue;
    const std::lock_guard lock(mutex_);
    Fail(absl::StrCat(what(), ": waited ", absl::FormatDuration(place_.timeout),
                      " for the other ranks to come; if they are only slow, raise comm.timeout_s"));
  }
}

void NcclHandle::Launch(const Enqueue& enqueue, const c10::Stream& stream) {
  const std::lock_guard lock(mutex_);
  if (!broken_.empty()) throw CommError(broken_);
  if (!calls_.empty() && calls_.back().stream != stream) calls_.back().end.block(stream);
  Check(enqueue(
      comm_, static_cast<cudaStream_t>(
                 c10::impl::VirtualGuardImpl(stream.device_type()).getStreamNativeHandle(stream))));
}

void NcclHandle::Launched(const Signature& call, const c10::Stream& stream) {
  const std::lock_guard lock(mutex_);
  c10::Event end(stream.device_type());
  end.record(stream);
  DropFinished(absl::Now());
  calls_.push_back({call, stream, std::move(end), absl::Now()});
}

void NcclHandle::Run(const Signature& call, const Enqueue& enqueue) {
  const c10::Stream stream = CurrentStream(place_.device);
  Launch(enqueue, stream);
  AwaitReady([&] { return Describe(call); });
  Launched(call, stream);
}

void NcclHandle::DropFinished(absl::Time now) {
  while (!calls_.empty() && calls_.front().end.query()) {
    calls_.pop_front();
    // The next one's turn comes now: it may have stood in the queue long before.
    if (!calls_.empty()) calls_.front().begun = std::max(calls_.front().begun, now);
  }
}

NcclWatched::Report NcclHandle::Look(absl::Time now) {
  const std::lock_guard lock(mutex_);
  if (!broken_.empty()) {
    if (now - broken_since_ < kFromErrorToEnd) return {};
    return {.problem = absl::StrCat(broken_, " (and the task has not ended since)")};
  }
  DropFinished(now);
  if (Comm() == nullptr) return {};
  ncclResult_t state = ncclSuccess;
  if (ncclCommGetAsyncError(comm_, &state) != ncclSuccess || !Accepted(state)) {
    const std::string during =
        calls_.empty() ? "" : absl::StrCat(Describe(calls_.front().call), ": ");
    return {.problem = absl::StrCat(during, "NCCL: ", ncclGetErrorString(state), ": ",
                                    ncclGetLastError(comm_))};
  }
  if (calls_.empty() || now - calls_.front().begun < place_.timeout) return {};
  return {.problem = absl::StrCat(
              Describe(calls_.front().call), " has not ended on ", place_.device.str(), " for ",
              absl::FormatDuration(absl::Trunc(now - calls_.front().begun, absl::Milliseconds(1))),
              ": ranks without such a line have not come to it; if they are only slow, raise "
              "comm.timeout_s")};
}

}  // namespace shoal
