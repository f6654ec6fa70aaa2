// Processes of one host that read each other's memory.
//
// [Note: nameless segments] Registered memory and the groups' regions are memfd segments: they have
// no name, so there is nothing to leave behind in /dev/shm, however a rank dies, and the (often
// small) size of /dev/shm does not bound them. A peer opens a segment through its owner's
// /proc/PID/fd, which asks for the same user and the same PID namespace, maps it the first time it
// is announced, and keeps the mapping. The owner frees alone: it marks the segment's header, and
// peers drop their mapping when they come across it.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>

#include "parallel/comm/host_collectives.h"

namespace shoal {

// Used by any number of threads, each with communicators of its own.
class ShmBackend final : public HostBackend {
 public:
  using AbortFunction = std::function<void(int exit_code, const std::string& reason)>;

  // `abort` ends the job.
  explicit ShmBackend(AbortFunction abort);
  ~ShmBackend() override;

  const char* name() const override { return "shm"; }
  Location Locate(const std::byte* data) override;
  const std::byte* Resolve(const Location& location) override;
  at::Tensor Allocate(int64_t numel, at::ScalarType dtype) override;
  std::pair<std::shared_ptr<std::byte>, Location> CreateRegion(int size) override;
  std::shared_ptr<std::byte> OpenRegion(const Location& location, int size) override;
  [[noreturn]] void Abort(int exit_code, const std::string& reason) override;

 private:
  class Segment;
  struct Owned;

  void DropFreedMappings();  // With mutex_ held

  AbortFunction abort_;
  std::shared_ptr<Owned> owned_;  // Outlives this object in the tensors that live in its segments
  std::mutex mutex_;              // For all below
  std::unordered_map<uint64_t, std::unique_ptr<Segment>> peers_;  // By segment
  int64_t calls_since_drop_ = 0;
};

}  // namespace shoal
