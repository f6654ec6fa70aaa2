#include "parallel/comm/host_group.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <ctime>
#include <thread>

#include "absl/strings/str_cat.h"
#include "parallel/comm/pending_sends.h"

namespace shoal {
namespace {

constexpr int64_t kPage = 4096;
constexpr int64_t kSpinNanoseconds = 30'000;
// A broken group rings every doorbell; the longest sleep only bounds the damage of a lost one.
constexpr int64_t kSleepNanoseconds = 200'000'000;
constexpr int64_t kUnsentNanoseconds = 50'000;  // A sleep while messages wait for room
constexpr int kReasonBytes = 2000;

int64_t RoundUp(int64_t bytes, int64_t unit) { return (bytes + unit - 1) / unit * unit; }

int64_t Now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void Relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

void FutexWait(std::atomic<uint32_t>& word, uint32_t expected, int64_t nanoseconds) {
  const timespec time{nanoseconds / 1'000'000'000, nanoseconds % 1'000'000'000};
  syscall(SYS_futex, &word, FUTEX_WAIT, expected, &time, nullptr, 0);
}

void FutexWake(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE, 1, nullptr, nullptr, 0);
}

}  // namespace

static_assert(std::atomic<uint32_t>::is_always_lock_free &&
                  std::atomic<uint64_t>::is_always_lock_free,
              "processes share these");

struct alignas(64) HostGroup::Header {
  enum Broken : uint32_t { kWhole = 0, kBreaking = 1, kBroken = 2 };
  std::atomic<uint32_t> arrived;     // Ranks in the present barrier
  std::atomic<uint32_t> generation;  // Barriers completed
  std::atomic<uint32_t> broken;
  char reason[kReasonBytes];
};

// A rank sleeps on its own word, and whoever changes what it may wait for rings it.
struct alignas(64) HostGroup::Doorbell {
  std::atomic<uint32_t> rings;
  std::atomic<uint32_t> sleeping;
  std::atomic<uint64_t> arrivals;  // Barriers this rank has come to
};

struct alignas(64) HostGroup::Channel {
  struct Piece {
    int64_t message_bytes;
    int32_t tag;
  };
  std::atomic<uint64_t> written;  // Pieces, by the sender
  std::atomic<uint64_t> read;     // Pieces, by the receiver
  Piece pieces[kChannelPieces];
};

struct HostGroup::Layout {
  int64_t doorbells, slots, channels, staging, pieces, end;
  explicit Layout(int64_t size) {
    doorbells = RoundUp(sizeof(Header), 64);
    slots = doorbells + size * sizeof(Doorbell);
    channels = RoundUp(slots + 2 * size * sizeof(Slot), 64);
    staging = RoundUp(channels + size * size * sizeof(Channel), kPage);
    pieces = staging + size * 2 * kStagingBytes;
    end = pieces + size * size * kChannelPieces * kPieceBytes;
  }
};

int64_t HostGroup::RegionBytes(int size) { return Layout(size).end; }

HostGroup::HostGroup(std::shared_ptr<std::byte> region, int size, int rank, absl::Duration timeout)
    : region_(std::move(region)), size_(size), rank_(rank), timeout_(timeout) {
  const bool oversubscribed = size > static_cast<int>(std::thread::hardware_concurrency());
  spin_nanoseconds_ = oversubscribed ? 0 : kSpinNanoseconds;
}

HostGroup::Header& HostGroup::header() { return *reinterpret_cast<Header*>(region_.get()); }

HostGroup::Doorbell& HostGroup::doorbell(int rank) {
  return reinterpret_cast<Doorbell*>(region_.get() + Layout(size_).doorbells)[rank];
}

Slot& HostGroup::slot(int parity, int rank) {
  return reinterpret_cast<Slot*>(region_.get() + Layout(size_).slots)[parity * size_ + rank];
}

HostGroup::Channel& HostGroup::channel(int source, int destination) {
  return reinterpret_cast<Channel*>(region_.get() +
                                    Layout(size_).channels)[source * size_ + destination];
}

std::byte* HostGroup::staging(int rank, int half) {
  return region_.get() + Layout(size_).staging + (rank * 2 + half) * kStagingBytes;
}

std::byte* HostGroup::piece(int source, int destination, uint64_t index) {
  const int64_t channel_index = source * size_ + destination;
  return region_.get() + Layout(size_).pieces +
         (channel_index * kChannelPieces + static_cast<int64_t>(index % kChannelPieces)) *
             kPieceBytes;
}

void HostGroup::Ring(int rank) {
  Doorbell& bell = doorbell(rank);
  bell.rings.fetch_add(1);
  if (bell.sleeping.load() != 0) FutexWake(bell.rings);
}

bool HostGroup::Wait(const std::function<bool()>& ready) {
  if (ready()) return true;
  const TraceSpan span(TraceKind::kWait, "wait");
  Doorbell& bell = doorbell(rank_);
  const int64_t start = Now();
  const int64_t limit =
      timeout_ == absl::InfiniteDuration() ? INT64_MAX : absl::ToInt64Nanoseconds(timeout_);
  for (int64_t waited = 0; waited < spin_nanoseconds_; waited = Now() - start) {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      Relax();
    }
  }
  while (true) {
    const bool nothing_unsent = PendingSends::MoveOn();
    const uint32_t rings = bell.rings.load();
    if (ready()) return true;
    ThrowIfBroken();
    const int64_t waited = Now() - start;
    if (waited >= limit) return false;
    bell.sleeping.store(1);
    FutexWait(bell.rings, rings,
              std::min(nothing_unsent ? kSleepNanoseconds : kUnsentNanoseconds, limit - waited));
    bell.sleeping.store(0);
  }
}

void HostGroup::Barrier(const Signature& what) {
  ThrowIfBroken();
  Header& head = header();
  const uint32_t generation = head.generation.load();
  doorbell(rank_).arrivals.store(++arrivals_);
  if (head.arrived.fetch_add(1) + 1 == static_cast<uint32_t>(size_)) {
    head.arrived.store(0);
    head.generation.fetch_add(1);
    for (int peer = 0; peer < size_; ++peer) {
      if (peer != rank_) Ring(peer);
    }
    return;
  }
  if (Wait([&] { return head.generation.load() != generation; })) return;
  Fail(absl::StrCat(Describe(what), ": rank ", rank_, " waited ", absl::FormatDuration(timeout_),
                    " for ", AbsentRanks(arrivals_),
                    "; if they are only slow, raise comm.timeout_s"));
}

std::string HostGroup::AbsentRanks(uint64_t arrivals) {
  std::string names;
  int count = 0;
  for (int peer = 0; peer < size_; ++peer) {
    if (doorbell(peer).arrivals.load() >= arrivals) continue;
    absl::StrAppend(&names, count++ == 0 ? "" : ", ", peer);
  }
  return absl::StrCat(count == 1 ? "rank " : "ranks ", names);
}

bool HostGroup::PutPieces(const std::byte* rest, int64_t total, int32_t tag, int destination,
                          int64_t& done) {
  Channel& line = channel(rank_, destination);
  do {
    const uint64_t index = line.written.load();
    if (index - line.read.load() >= kChannelPieces) return false;
    const int64_t part = std::min(kPieceBytes, total - done);
    if (part > 0) std::memcpy(piece(rank_, destination, index), rest, part);
    line.pieces[index % kChannelPieces] = {total, tag};
    line.written.store(index + 1);
    Ring(destination);
    rest += part;
    done += part;
  } while (done < total);
  return true;
}

bool HostGroup::SendUnsent() {
  if (broken()) unsent_.clear();
  for (auto& [destination, messages] : unsent_) {
    while (!messages.empty()) {
      Unsent& first = messages.front();
      const int64_t before = first.total - static_cast<int64_t>(first.bytes.size());
      if (!PutPieces(first.bytes.data() + (first.done - before), first.total, first.tag,
                     destination, first.done)) {
        break;
      }
      messages.pop_front();
    }
  }
  std::erase_if(unsent_, [](const auto& entry) { return entry.second.empty(); });
  return unsent_.empty();
}

void HostGroup::Send(const std::byte* data, int64_t bytes, int32_t tag, int destination) {
  ThrowIfBroken();
  int64_t done = 0;
  SendUnsent();
  const bool waits = unsent_.contains(destination);
  if (!waits && PutPieces(data, bytes, tag, destination, done)) return;
  unsent_[destination].push_back({{data + done, data + bytes}, bytes, tag, done});
  PendingSends::Add(this, [this] { return SendUnsent(); });
}

HostGroup::~HostGroup() {
  const int64_t start = Now();
  while (!SendUnsent() && Now() - start < absl::ToInt64Nanoseconds(timeout_))
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  PendingSends::Remove(this);
}

void HostGroup::Recv(std::byte* data, int64_t bytes, int32_t tag, int source) {
  Channel& line = channel(source, rank_);
  int64_t done = 0;
  do {
    const uint64_t index = line.read.load();
    if (!Wait([&] { return line.written.load() > index; })) {
      Fail(absl::StrCat("Recv of ", bytes, " bytes: rank ", rank_, " waited ",
                        absl::FormatDuration(timeout_), " for rank ", source, " to send"));
    }
    const Channel::Piece& sent = line.pieces[index % kChannelPieces];
    if (sent.message_bytes != bytes || sent.tag != tag) {
      Fail(absl::StrCat("ranks disagree: rank ", source, " sends ", sent.message_bytes,
                        " bytes of ", c10::toString(static_cast<at::ScalarType>(sent.tag)),
                        "; rank ", rank_, " receives ", bytes, " bytes of ",
                        c10::toString(static_cast<at::ScalarType>(tag))));
    }
    const int64_t part = std::min(kPieceBytes, bytes - done);
    if (part > 0) std::memcpy(data + done, piece(source, rank_, index), part);
    line.read.store(index + 1);
    Ring(source);
    done += part;
  } while (done < bytes);
}

void HostGroup::Break(const std::string& reason) {
  Header& head = header();
  uint32_t whole = Header::kWhole;
  if (!head.broken.compare_exchange_strong(whole, Header::kBreaking)) return;
  const size_t length = std::min<size_t>(reason.size(), kReasonBytes - 1);
  std::memcpy(head.reason, reason.data(), length);
  head.reason[length] = '\0';
  head.broken.store(Header::kBroken);
  for (int peer = 0; peer < size_; ++peer) Ring(peer);
}

bool HostGroup::broken() const {
  return reinterpret_cast<const Header*>(region_.get())->broken.load() == Header::kBroken;
}

void HostGroup::ThrowIfBroken() {
  if (broken()) throw CommError(header().reason);
}

void HostGroup::Fail(const std::string& reason) {
  Break(reason);
  throw CommError(reason);
}

}  // namespace shoal
