#include "core/offload.h"

#include <sys/mman.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <new>
#include <thread>

#include <ATen/ops/empty.h>

#include "core/dtype.h"
#include "core/status.h"

namespace shoal {

struct OffloadRegion {
  enum class State {
    kAside,    // No memory
    kReading,  // Asked for
    kHere,
    kWriting,  // Given back
  };

  std::shared_ptr<OffloadThread> thread;
  char* memory;
  int64_t bytes;
  int64_t offset = -1;  // In the file; -1: no place yet
  State state = State::kAside;
  bool stored = false;         // The file has its content; else, if it is aside, it is zeros
  bool modified = false;       // Since it was stored
  bool has_memory = false;     // It is counted
  bool under_way = false;      // The thread reads or writes it
  bool orphan = false;         // Its tensor is gone
  int pins = 0;                // Who wants it here
  bool wants_content = false;  // While it is asked for: not zeros
  int queued = 0;              // Its places in the queue
  OffloadedTensors* of = nullptr;
};

// The file and the thread that reads and writes it. All of a region is under the mutex, but for its
// memory.
class OffloadThread {
 public:
  explicit OffloadThread(std::unique_ptr<ScratchFile> file)
      : file_(std::move(file)), thread_([this] { Run(); }) {}

  // The last use of the thread; regions can still be freed.
  void Stop() {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  OffloadRegion* Make(std::shared_ptr<OffloadThread> self, int64_t bytes) {
    const int64_t rounded = OffloadSpace::Rounded(std::max<int64_t>(bytes, 1));
    void* memory =
        ::mmap(nullptr, rounded, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    constexpr int64_t kLargePage = 2 << 20;
    if (rounded >= kLargePage) ::madvise(memory, rounded, MADV_HUGEPAGE);  // A wish
    return new OffloadRegion{
        .thread = std::move(self), .memory = static_cast<char*>(memory), .bytes = rounded};
  }

  void Free(OffloadRegion* region) {
    const std::shared_ptr<OffloadThread> self = region->thread;  // Until the lock is given back
    const std::lock_guard lock(mutex_);
    if (region->of != nullptr) region->of->regions_.erase(region);
    region->orphan = true;
    if (region->queued == 0) Destroy(region);
  }

  void GivePlace(OffloadRegion* region) {
    const std::lock_guard lock(mutex_);
    Place(region);
  }

  void Prefetch(OffloadRegion* region, OffloadAccess access) {
    const std::lock_guard lock(mutex_);
    if (region->state == OffloadRegion::State::kAside) AskFor(region, access);
  }

  void Acquire(OffloadRegion* region, OffloadAccess access) {
    using enum OffloadRegion::State;
    std::unique_lock lock(mutex_);
    ++region->pins;
    if (region->state == kWriting && !region->under_way) region->state = kHere;
    while (region->state != kHere) {
      if (!failure_.ok()) {
        --region->pins;
        throw OffloadError(failure_);
      }
      if (region->state == kAside) AskFor(region, access);
      changed_.wait(lock);
    }
    if (access != OffloadAccess::kRead) region->modified = true;
  }

  void Release(OffloadRegion* region) {
    const std::lock_guard lock(mutex_);
    if (--region->pins > 0 || !failure_.ok()) return;
    if (!region->modified) {
      GiveMemoryBack(region);
      region->state = OffloadRegion::State::kAside;
      return;
    }
    Place(region);
    region->state = OffloadRegion::State::kWriting;
    Queue(region);
  }

  void Drain() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return queue_.empty() && busy_ == nullptr; });
    if (!failure_.ok()) throw OffloadError(failure_);
  }

  // A region with memory, which `of` has.
  OffloadRegion* MakeHere(std::shared_ptr<OffloadThread> self, int64_t bytes,
                          OffloadedTensors* of) {
    OffloadRegion* region = Make(std::move(self), bytes);
    const std::lock_guard lock(mutex_);
    if (!GetMemory(region)) {
      Destroy(region);
      throw std::bad_alloc();
    }
    region->state = OffloadRegion::State::kHere;
    region->pins = 1;
    region->modified = true;
    region->of = of;
    of->regions_.insert(region);
    return region;
  }

  void Move(OffloadRegion* region, OffloadedTensors* to) {
    const std::lock_guard lock(mutex_);
    if (region->of != nullptr) region->of->regions_.erase(region);
    region->of = to;
    if (to != nullptr) to->regions_.insert(region);
  }

  // Those of `tensors` that somebody (or nobody) wants here.
  std::vector<OffloadRegion*> Of(const OffloadedTensors& tensors, bool wanted) {
    const std::lock_guard lock(mutex_);
    std::vector<OffloadRegion*> regions;
    for (OffloadRegion* region : tensors.regions_) {
      if ((region->pins > 0) == wanted) regions.push_back(region);
    }
    return regions;
  }

  void Disown(OffloadedTensors& tensors) {
    const std::lock_guard lock(mutex_);
    for (OffloadRegion* region : tensors.regions_) region->of = nullptr;
  }

  absl::Status Reserve() {
    const std::lock_guard lock(mutex_);
    return file_->Reserve(end_);
  }
  int64_t bytes_read() {
    const std::lock_guard lock(mutex_);
    return bytes_read_;
  }
  int64_t bytes_written() {
    const std::lock_guard lock(mutex_);
    return bytes_written_;
  }

 private:
  void Place(OffloadRegion* region) {
    if (region->offset >= 0) return;
    const auto free = free_.find(region->bytes);
    if (free != free_.end()) {
      region->offset = free->second;
      free_.erase(free);
    } else {
      region->offset = end_;
      end_ += region->bytes;
    }
  }

  bool GetMemory(OffloadRegion* region) {
    if (::mprotect(region->memory, region->bytes, PROT_READ | PROT_WRITE) != 0) return false;
    region->has_memory = true;
    AddTensorBytes(region->bytes);
    return true;
  }

  void GiveMemoryBack(OffloadRegion* region) {
    ::madvise(region->memory, region->bytes, MADV_DONTNEED);
    ::mprotect(region->memory, region->bytes, PROT_NONE);
    region->has_memory = false;
    AddTensorBytes(-region->bytes);
  }

  void Queue(OffloadRegion* region) {
    ++region->queued;
    queue_.push_back(region);
    changed_.notify_all();
  }

  // Memory is asked for in the queue, even of zeros: so it waits for what is written before.
  void AskFor(OffloadRegion* region, OffloadAccess access) {
    region->wants_content = region->stored && access != OffloadAccess::kReplace;
    region->state = OffloadRegion::State::kReading;
    Queue(region);
  }

  void Destroy(OffloadRegion* region) {
    if (region->has_memory) AddTensorBytes(-region->bytes);
    ::munmap(region->memory, region->bytes);
    if (region->offset >= 0) free_.emplace(region->bytes, region->offset);
    delete region;
  }

  void Run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return ending_ || !queue_.empty(); });
      if (queue_.empty()) return;
      busy_ = queue_.front();
      queue_.pop_front();
      if (!busy_->orphan && failure_.ok()) Serve(*busy_, lock);
      if (--busy_->queued == 0 && busy_->orphan) Destroy(busy_);
      busy_ = nullptr;
      changed_.notify_all();
    }
  }

  // What was asked of it last; it may have been taken back since.
  void Serve(OffloadRegion& region, std::unique_lock<std::mutex>& lock) {
    using enum OffloadRegion::State;
    const bool reads = region.state == kReading;
    if (!reads && region.state != kWriting) return;
    if (reads) {
      if (!GetMemory(&region)) {
        failure_ = absl::ResourceExhaustedError("no memory for what is offloaded");
        return;
      }
      if (!region.wants_content) {
        region.state = kHere;
        return;
      }
    } else {
      region.modified = false;
    }
    region.under_way = true;
    lock.unlock();
    const absl::Status status = reads ? file_->Read(region.offset, region.memory, region.bytes)
                                      : file_->Write(region.offset, region.memory, region.bytes);
    lock.lock();
    region.under_way = false;
    if (!status.ok()) {
      failure_ = status;
      return;
    }
    (reads ? bytes_read_ : bytes_written_) += region.bytes;
    region.stored = true;
    region.state = reads ? kHere : kAside;
    // Read ahead for nobody yet: it waits here.
    if (!reads) GiveMemoryBack(&region);
  }

  std::unique_ptr<ScratchFile> file_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<OffloadRegion*> queue_;
  OffloadRegion* busy_ = nullptr;
  std::multimap<int64_t, int64_t> free_;  // Offsets by size
  int64_t end_ = 0;
  int64_t bytes_read_ = 0, bytes_written_ = 0;
  absl::Status failure_;
  bool ending_ = false;
  std::thread thread_;  // Last: it uses all of the above
};

namespace {

void FreeRegion(void* context) {
  OffloadRegion* region = static_cast<OffloadRegion*>(context);
  region->thread->Free(region);
}

OffloadRegion* RegionOf(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.has_storage()) return nullptr;
  const c10::DataPtr& data = tensor.storage().data_ptr();
  return data.get_deleter() == &FreeRegion ? static_cast<OffloadRegion*>(data.get_context())
                                           : nullptr;
}

c10::DataPtr DataOf(OffloadRegion* region) {
  return {region->memory, region, &FreeRegion, c10::Device(c10::kCPU)};
}

}  // namespace

OffloadSpace::OffloadSpace(std::unique_ptr<ScratchFile> file)
    : thread_(std::make_shared<OffloadThread>(std::move(file))) {}

OffloadSpace::~OffloadSpace() { thread_->Stop(); }

absl::StatusOr<std::unique_ptr<OffloadSpace>> OffloadSpace::Open(const std::string& folder) {
  SHOAL_ASSIGN_OR_RETURN(std::unique_ptr<ScratchFile> file, ScratchFile::Create(folder));
  return std::unique_ptr<OffloadSpace>(new OffloadSpace(std::move(file)));
}

at::Tensor OffloadSpace::Zeros(int64_t numel, at::ScalarType dtype) {
  if (numel == 0) return at::empty({0}, at::TensorOptions(dtype));
  const int64_t bytes = numel * ElementBytes(dtype);
  OffloadRegion* region = thread_->Make(thread_, bytes);
  thread_->GivePlace(region);
  reserved_ += region->bytes;
  c10::Storage storage(c10::Storage::use_byte_size_t(), bytes, DataOf(region));
  return at::empty({0}, at::TensorOptions(dtype)).set_(storage, 0, {numel}, {1});
}

absl::Status OffloadSpace::Reserve() { return thread_->Reserve(); }
void OffloadSpace::Drain() { thread_->Drain(); }
int64_t OffloadSpace::bytes_reserved() const { return reserved_; }
int64_t OffloadSpace::bytes_read() const { return thread_->bytes_read(); }
int64_t OffloadSpace::bytes_written() const { return thread_->bytes_written(); }

void PrefetchOffloaded(const at::Tensor& tensor, OffloadAccess access) {
  if (OffloadRegion* region = RegionOf(tensor)) region->thread->Prefetch(region, access);
}

void OffloadHold::Add(const at::Tensor& tensor, OffloadAccess access) {
  OffloadRegion* region = RegionOf(tensor);
  if (region == nullptr) return;
  region->thread->Acquire(region, access);
  regions_.push_back(region);
}

void OffloadHold::Only(const at::Tensor& tensor, OffloadAccess access) {
  OffloadRegion* region = RegionOf(tensor);
  if (region != nullptr && regions_.size() == 1 && regions_[0] == region) return;
  Clear();
  Add(tensor, access);
}

void OffloadHold::Clear() {
  for (OffloadRegion* region : regions_) region->thread->Release(region);
  regions_.clear();
}

OffloadedTensors::OffloadedTensors(OffloadSpace& space) : thread_(space.thread_) {}
OffloadedTensors::~OffloadedTensors() { thread_->Disown(*this); }

c10::DataPtr OffloadedTensors::Allocate(int64_t bytes) {
  return DataOf(thread_->MakeHere(thread_, bytes, this));
}

void OffloadedTensors::Leave(const at::Tensor& tensor) {
  if (OffloadRegion* region = RegionOf(tensor)) thread_->Move(region, nullptr);
}

void OffloadedTensors::Join(const at::Tensor& tensor) {
  if (OffloadRegion* region = RegionOf(tensor)) thread_->Move(region, this);
}

void OffloadedTensors::PutAside() {
  thread_->Drain();
  for (OffloadRegion* region : thread_->Of(*this, /*wanted=*/true)) thread_->Release(region);
}

void OffloadedTensors::Prefetch() {
  for (OffloadRegion* region : thread_->Of(*this, /*wanted=*/false))
    thread_->Prefetch(region, OffloadAccess::kRead);
}

void OffloadedTensors::Bring() {
  for (OffloadRegion* region : thread_->Of(*this, /*wanted=*/false))
    thread_->Acquire(region, OffloadAccess::kRead);
}

}  // namespace shoal
