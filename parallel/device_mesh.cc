#include "parallel/device_mesh.h"

#include <ATen/ops/full.h>

#include "absl/strings/str_cat.h"

namespace shoal {

std::string MeshShape::Equation() const {
  std::string text = absl::StrCat(num_ranks(), num_ranks() == 1 ? " rank = " : " ranks = ");
  const std::pair<const char*, int> axes[] = {{"replicate", replicate},
                                              {"shard", shard},
                                              {"context", context},
                                              {"tensor", tensor},
                                              {"pipeline", pipeline}};
  bool first = true;
  for (const auto& [name, size] : axes) {
    if (size == 1 && !(num_ranks() == 1 && name == axes[1].first)) continue;
    absl::StrAppend(&text, first ? "" : " x ", name, " ", size);
    first = false;
  }
  return text;
}

absl::StatusOr<DeviceMesh> DeviceMesh::Create(Communicator& world, const MeshShape& shape) {
  if (shape.num_ranks() != world.size()) {
    return absl::InvalidArgumentError(absl::StrCat("the mesh needs ", shape.num_ranks(), " ranks (",
                                                   shape.Equation(), "), the job has ",
                                                   world.size()));
  }
  if (shape.num_ranks() != shape.shard) {
    return absl::UnimplementedError(
        absl::StrCat("mesh ", shape.Equation(), ": only the shard axis may be larger than 1"));
  }
  DeviceMesh mesh;
  mesh.shape_ = shape;
  mesh.shard_ = world.Split(/*color=*/0, world.rank());
  mesh.control_ = world.Split(/*color=*/0, world.rank());
  return mesh;
}

namespace {

template <typename T>
T ReduceScalar(Communicator& comm, T value, at::ScalarType dtype, ReduceOp op) {
  if (comm.size() == 1) return value;
  at::Tensor cell = at::full({1}, value, at::TensorOptions().dtype(dtype));
  comm.AllReduce(cell, op);
  return *cell.const_data_ptr<T>();
}

}  // namespace

double SumOverRanks(Communicator& comm, double value) {
  return ReduceScalar(comm, value, at::kDouble, ReduceOp::kSum);
}

int64_t SumOverRanks(Communicator& comm, int64_t value) {
  return ReduceScalar(comm, value, at::kLong, ReduceOp::kSum);
}

int64_t MaxOverRanks(Communicator& comm, int64_t value) {
  return ReduceScalar(comm, value, at::kLong, ReduceOp::kMax);
}

}  // namespace shoal
