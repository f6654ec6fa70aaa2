#include "parallel/comm/shm_backend.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include "absl/strings/str_cat.h"
#include "core/dtype.h"
#include "core/tensor_memory.h"

namespace shoal {
namespace {

constexpr uint64_t kMagic = 0x53686f616c536567;  // "ShoalSeg"
constexpr int64_t kHeaderBytes = 4096;           // Keeps the data page-aligned
constexpr int64_t kCallsBetweenDrops = 1024;

struct SegmentHeader {
  uint64_t magic;
  uint64_t id;
  std::atomic<uint32_t> freed;
};

[[noreturn]] void Fail(const std::string& what) {
  throw CommError(absl::StrCat("shared memory: ", what, ": ", std::strerror(errno)));
}

}  // namespace

// A mapped memfd: created by its owner, opened by peers.
class ShmBackend::Segment {
 public:
  Segment(int64_t data_bytes, uint64_t id)
      : bytes_(kHeaderBytes + data_bytes), id_(id), owner_(true) {
    fd_ = memfd_create("shoal", MFD_CLOEXEC);
    if (fd_ < 0) Fail("cannot create a segment");
    if (ftruncate(fd_, bytes_) != 0) {
      close(fd_);
      Fail(absl::StrCat("cannot size a segment of ", bytes_, " bytes"));
    }
    Map();
    header().magic = kMagic;
    header().id = id;
  }

  explicit Segment(const Location& location)
      : bytes_(location.segment_bytes), id_(location.segment), owner_(false) {
    const std::string path = absl::StrCat("/proc/", location.owner_pid, "/fd/", location.owner_fd);
    fd_ = open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (fd_ < 0) Fail(absl::StrCat("cannot open a peer's segment at ", path));
    struct stat status {};
    if (fstat(fd_, &status) != 0 || status.st_size != bytes_) {
      close(fd_);
      throw CommError(absl::StrCat("shared memory: ", path, " is not the peer's segment"));
    }
    Map();
    close(std::exchange(fd_, -1));
    if (header().magic == kMagic && header().id == id_) return;
    munmap(memory_, bytes_);
    throw CommError(absl::StrCat("shared memory: ", path, " is not the peer's segment"));
  }

  ~Segment() {
    if (owner_) header().freed.store(1);
    munmap(memory_, bytes_);
    if (fd_ >= 0) close(fd_);
  }
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  std::byte* data() { return memory_ + kHeaderBytes; }
  int64_t data_bytes() const { return bytes_ - kHeaderBytes; }
  bool freed() { return header().freed.load() != 0; }
  Location At(int64_t offset) const {
    return {.segment = id_,
            .offset = offset,
            .segment_bytes = bytes_,
            .owner_pid = getpid(),
            .owner_fd = fd_};
  }

 private:
  void Map() {
    void* memory =
        mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd_, 0);
    if (memory == MAP_FAILED) {
      const int error = errno;
      close(fd_);
      errno = error;
      Fail(absl::StrCat("cannot map a segment of ", bytes_, " bytes"));
    }
    memory_ = static_cast<std::byte*>(memory);
  }
  SegmentHeader& header() { return *reinterpret_cast<SegmentHeader*>(memory_); }

  std::byte* memory_ = nullptr;
  int64_t bytes_;
  uint64_t id_;
  int fd_ = -1;
  bool owner_;
};

// The registered tensors of this rank. Tensors die on any thread.
struct ShmBackend::Owned {
  std::mutex mutex;
  std::map<const std::byte*, std::weak_ptr<Segment>> by_begin;
  uint64_t next = 1;

  std::shared_ptr<Segment> Create(int64_t bytes) {
    std::lock_guard lock(mutex);
    const uint64_t id = static_cast<uint64_t>(getpid()) << 32 | next++;
    return std::make_shared<Segment>(bytes, id);
  }
};

ShmBackend::ShmBackend(AbortFunction abort)
    : abort_(std::move(abort)), owned_(std::make_shared<Owned>()) {}
ShmBackend::~ShmBackend() = default;

at::Tensor ShmBackend::Allocate(int64_t numel, at::ScalarType dtype) {
  if (numel == 0) return at::empty({0}, dtype);
  const int64_t bytes = numel * ElementBytes(dtype);
  std::shared_ptr<Segment> segment = owned_->Create(bytes);
  std::byte* data = segment->data();
  {
    std::lock_guard lock(owned_->mutex);
    owned_->by_begin[data] = segment;
  }
  // The address leaves the map before it can be mapped anew.
  AddTensorBytes(bytes);
  auto free = [owned = owned_, segment, bytes](void* begin) mutable {
    AddTensorBytes(-bytes);
    std::lock_guard lock(owned->mutex);
    owned->by_begin.erase(static_cast<std::byte*>(begin));
    segment.reset();
  };
  return at::from_blob(data, {numel}, std::move(free), at::TensorOptions().dtype(dtype));
}

Location ShmBackend::Locate(const std::byte* data) {
  std::lock_guard lock(owned_->mutex);
  auto after = owned_->by_begin.upper_bound(data);
  if (after == owned_->by_begin.begin()) return {};
  const std::shared_ptr<Segment> segment = std::prev(after)->second.lock();
  if (segment == nullptr || data >= segment->data() + segment->data_bytes()) return {};
  return segment->At(data - segment->data());
}

const std::byte* ShmBackend::Resolve(const Location& location) {
  const std::lock_guard lock(mutex_);
  if (++calls_since_drop_ >= kCallsBetweenDrops) DropFreedMappings();
  auto found = peers_.find(location.segment);
  if (found == peers_.end()) {
    DropFreedMappings();
    found = peers_.emplace(location.segment, std::make_unique<Segment>(location)).first;
  }
  return found->second->data() + location.offset;
}

void ShmBackend::DropFreedMappings() {
  calls_since_drop_ = 0;
  std::erase_if(peers_, [](const auto& entry) { return entry.second->freed(); });
}

std::pair<std::shared_ptr<std::byte>, Location> ShmBackend::CreateRegion(int size) {
  std::shared_ptr<Segment> segment = owned_->Create(HostGroup::RegionBytes(size));
  return {std::shared_ptr<std::byte>(segment, segment->data()), segment->At(0)};
}

std::shared_ptr<std::byte> ShmBackend::OpenRegion(const Location& location, int size) {
  auto segment = std::make_shared<Segment>(location);
  if (segment->data_bytes() < HostGroup::RegionBytes(size))
    throw CommError("shared memory: region too small");
  return std::shared_ptr<std::byte>(segment, segment->data());
}

void ShmBackend::Abort(int exit_code, const std::string& reason) {
  abort_(exit_code, reason);
  std::_Exit(exit_code);
}

}  // namespace shoal
