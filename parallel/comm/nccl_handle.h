// One NCCL communicator and what is under way on it. Included by nccl_*.cc only.
//
// [Note: calls that return at once] The communicators are non-blocking (ncclConfig_t::blocking =
// 0): what must wait for other ranks before a kernel can start (to meet them, to connect to them at
// a first call) goes on beside, and is asked about until it is done, for as long as a call may
// take. The kernels themselves run on the caller's current stream, so results are ordered there,
// and memory that the caller's stream allocated needs no care; the watch asks for their ends.
#pragma once

#include <nccl.h>

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include <c10/core/Event.h>

#include "parallel/comm/call_ledger.h"
#include "parallel/comm/nccl_watch.h"
#include "parallel/comm/signature.h"

namespace shoal {

// Of the thread that uses the communicator, beside the watch's.
class NcclHandle final : public NcclWatched {
 public:
  struct Place {
    at::Device device;
    std::shared_ptr<NcclWatch> watch;
    std::shared_ptr<CallLedger> ledger;  // In which users of the handle note their calls
    absl::Duration timeout;
  };
  using Enqueue = std::function<ncclResult_t(ncclComm_t comm, cudaStream_t stream)>;

  static ncclUniqueId NewId();

  explicit NcclHandle(Place place);
  // Waits for its calls, as long as one may take, and breaks off those that do not end.
  ~NcclHandle() override;
  NcclHandle(const NcclHandle&) = delete;
  NcclHandle& operator=(const NcclHandle&) = delete;

  // Begins to meet the other ranks: those that do the same with `id`.
  void Begin(const ncclUniqueId& id, int size, int rank);
  // Begins to split off the ranks with this colour (< 0: none, and `part` stays empty), and waits
  // until it is done. Collective.
  void SplitInto(NcclHandle& part, int color, int key);

  // Enqueues a call on the current stream; returns when it is there. Calls follow each other on the
  // device whatever streams are current. Throws CommError.
  void Run(const Signature& call, const Enqueue& enqueue);

  // The same in parts, without waiting. After Launch: Ready until true, then Launched.
  void Launch(const Enqueue& enqueue, const c10::Stream& stream);
  void Launched(const Signature& call, const c10::Stream& stream);
  // Whether what was begun is done. Throws CommError if it failed, or once ranks are known to
  // disagree.
  bool Ready();
  // Until Ready, as long as a call may take. `what`: for the error.
  void AwaitReady(const std::function<std::string()>& what);

  Report Look(absl::Time now) override;

 private:
  struct Unfinished {
    Signature call;
    c10::Stream stream;
    c10::Event end;
    absl::Time begun;
  };
  void Check(ncclResult_t result);  // Throws
  void Break(std::string reason);   // These two with mutex_ held
  [[noreturn]] void Fail(std::string reason);
  void DropFinished(absl::Time now);
  bool Settled();  // No call is under way, or none will end
  ncclComm_t Comm();
  ncclComm_t Surrender();  // The watch does not see it any more

  Place place_;
  std::mutex mutex_;  // For all below: the watch looks
  ncclComm_t comm_ = nullptr;
  std::deque<Unfinished> calls_;
  std::string broken_;
  absl::Time broken_since_;
};

c10::Stream CurrentStream(at::Device device);

}  // namespace shoal
