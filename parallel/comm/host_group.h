// Where the ranks of one host meet: a region of memory that all of them see (one allocation for
// rank threads, a shared mapping for processes), with a barrier, a slot per rank to announce its
// call, staging buffers and point-to-point channels. Waiting spins shortly and then sleeps in the
// kernel (futex), so more ranks than cores stay quick.
//
// A wait ends in one of three ways: what it waits for happens; the group is broken (a rank failed,
// and said why); or the timeout passes, which breaks the group for everyone, naming the ranks that
// did not come. The last two throw CommError.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "parallel/comm/signature.h"

namespace shoal {

// A place in memory that peers can reach, in terms that mean the same to all of them. Plain data.
struct Location {
  uint64_t segment = 0;  // 0: none
  int64_t offset = 0;
  int64_t segment_bytes = 0;
  int32_t owner_pid = 0;
  int32_t owner_fd = -1;
};

// What a rank announces of its call. Plain data.
struct Slot {
  enum class Source : int32_t {
    kNone,    // This rank's buffer is not read
    kDirect,  // Peers read it at `location`
    kStaged,  // It is copied through the staging buffer
  };
  Signature signature;
  Source source = Source::kNone;
  Location location;
};

// One rank's view of the region. Not thread-safe but for Break.
class HostGroup {
 public:
  static constexpr int64_t kStagingBytes = 1 << 20;  // Of each of a rank's two staging buffers
  static constexpr int kChannelPieces = 16;          // Pieces of a channel in flight
  static constexpr int64_t kPieceBytes = 1 << 18;

  // What the region must measure, zero-filled. Pages are touched only when used.
  static int64_t RegionBytes(int size);

  // `region` is page-aligned and at least RegionBytes(size) long.
  HostGroup(std::shared_ptr<std::byte> region, int size, int rank, absl::Duration timeout);

  // Waits, as long as a call may take, for the peers to take what was sent.
  ~HostGroup();
  HostGroup(const HostGroup&) = delete;
  HostGroup& operator=(const HostGroup&) = delete;

  int size() const { return size_; }
  int rank() const { return rank_; }

  // Waits for all ranks. `what` names the call in errors.
  void Barrier(const Signature& what);

  // `parity` is that of the call's sequence number: a rank is at most one call ahead of its peers'
  // reads.
  Slot& slot(int parity, int rank);
  std::byte* staging(int rank, int half);

  // Moves `bytes` to or from a peer, matched in order; `tag` (a dtype) must agree. Send copies the
  // bytes and returns: a few pieces go into the channel, the rest waits for room there (see
  // pending_sends.h).
  void Send(const std::byte* data, int64_t bytes, int32_t tag, int destination);
  void Recv(std::byte* data, int64_t bytes, int32_t tag, int source);

  // Makes every present and later wait of every rank throw `reason`, unless it was broken before.
  // Any thread.
  void Break(const std::string& reason);
  bool broken() const;

 private:
  struct Header;
  struct Doorbell;
  struct Channel;
  struct Layout;

  // What is left of a message that found no room.
  struct Unsent {
    std::vector<std::byte> bytes;  // From `done` on
    int64_t total;
    int32_t tag;
    int64_t done;
  };

  Header& header();
  Doorbell& doorbell(int rank);
  Channel& channel(int source, int destination);
  std::byte* piece(int source, int destination, uint64_t index);

  // Puts bytes [done, total) of a message, which begin at `rest`, into the channel as far as there
  // is room. True when the message is out.
  bool PutPieces(const std::byte* rest, int64_t total, int32_t tag, int destination, int64_t& done);
  bool SendUnsent();  // True when nothing is left

  void Ring(int rank);
  // Sleeps until `ready`; false when the timeout has passed first. Throws if the group is broken.
  bool Wait(const std::function<bool()>& ready);
  void ThrowIfBroken();
  [[noreturn]] void Fail(const std::string& reason);
  std::string AbsentRanks(uint64_t arrivals);

  std::shared_ptr<std::byte> region_;
  int size_;
  int rank_;
  absl::Duration timeout_;
  int64_t spin_nanoseconds_;
  uint64_t arrivals_ = 0;
  std::map<int, std::deque<Unsent>> unsent_;  // By destination
};

}  // namespace shoal
