// Who is who: the ranks of a job arranged along named axes. The only place that knows; everything
// else is handed the communicator of the axis that it works along.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "parallel/comm/communicator.h"

namespace shoal {

// Sizes of the axes, outermost first. Their product is the number of ranks.
struct MeshShape {
  int replicate = 1;
  int shard = 1;
  int context = 1;
  int tensor = 1;
  int pipeline = 1;

  int num_ranks() const { return replicate * shard * context * tensor * pipeline; }
  // "4 ranks = shard 4": axes of size 1 left out.
  std::string Equation() const;
};

class DeviceMesh {
 public:
  // Collective over `world`, which must outlive the mesh. Axes other than shard must be 1: the
  // loader refuses recipes that ask for more.
  static absl::StatusOr<DeviceMesh> Create(Communicator& world, const MeshShape& shape);

  const MeshShape& shape() const { return shape_; }
  // The ranks over which ZeRO shards and gradients are summed.
  Communicator& shard() const { return *shard_; }
  // All ranks, for counts, norms and agreement: its few bytes do not mix with the counted training
  // traffic.
  Communicator& control() const { return *control_; }
  // Ranks that read different data, and this rank's place among them.
  int data_parallel_size() const { return shape_.replicate * shape_.shard; }
  int data_parallel_rank() const { return shard_->rank(); }

 private:
  DeviceMesh() = default;

  MeshShape shape_;
  std::unique_ptr<Communicator> shard_;
  std::unique_ptr<Communicator> control_;
};

// Sum over the ranks of `comm`, in rank order. Collective.
double SumOverRanks(Communicator& comm, double value);
int64_t SumOverRanks(Communicator& comm, int64_t value);
int64_t MaxOverRanks(Communicator& comm, int64_t value);

}  // namespace shoal
