#include "parallel/device_mesh.h"

#include <ATen/ops/full.h>

#include <algorithm>
#include <initializer_list>
#include <utility>

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
  if (expert > 1) absl::StrAppend(&text, ", experts over ", expert, " of shard ", shard);
  return text;
}

absl::StatusOr<DeviceMesh> DeviceMesh::Create(Communicator& world, const MeshShape& shape) {
  if (shape.num_ranks() != world.size()) {
    return absl::InvalidArgumentError(absl::StrCat("the mesh needs ", shape.num_ranks(), " ranks (",
                                                   shape.Equation(), "), the job has ",
                                                   world.size()));
  }
  if (shape.shard % shape.expert != 0) {
    return absl::InvalidArgumentError(absl::StrCat("mesh ", shape.Equation(), ": expert ",
                                                   shape.expert, " does not divide shard ",
                                                   shape.shard));
  }
  const int rank = world.rank();
  int rest = rank;
  const auto next = [&](int size) { return std::exchange(rest, rest / size) % size; };
  const int tensor = next(shape.tensor), context = next(shape.context), shard = next(shape.shard),
            replicate = next(shape.replicate), pipeline = rest;
  // Ranks that agree in the given coordinates are one group; the rest orders them.
  const auto group = [&](std::initializer_list<std::pair<int, int>> equal) {
    int color = 0;
    for (const auto& [coordinate, size] : equal) color = color * size + coordinate;
    return world.Split(color, rank);
  };
  const std::pair<int, int> t{tensor, shape.tensor}, c{context, shape.context},
      s{shard, shape.shard}, r{replicate, shape.replicate}, p{pipeline, shape.pipeline};
  DeviceMesh mesh;
  mesh.shape_ = shape;
  mesh.loss_stage_ = shape.pipeline - 1;
  mesh.shard_ = group({p, r, t});
  mesh.replicate_ = group({p, s, c, t});
  mesh.context_ = group({p, r, s, t});
  mesh.tensor_ = group({p, r, s, c});
  mesh.pipeline_ = group({r, s, c, t});
  mesh.pipeline_gradients_ = group({r, s, c, t});
  if (shape.expert > 1) {
    const int blocks = shape.shard / shape.expert;
    mesh.expert_ = group({p, r, {shard / shape.expert, blocks}, c, t});
    mesh.expert_shard_ = group({p, r, {shard % shape.expert, shape.expert}, t});
  }
  mesh.control_ = group({});
  mesh.data_control_ = group({p, t});
  mesh.shard_control_ = group({p, r, t});
  mesh.model_control_ = group({r, s, c});
  mesh.shard_->set_axis("shard");
  mesh.replicate_->set_axis("replicate");
  mesh.context_->set_axis("context");
  mesh.tensor_->set_axis("tensor");
  mesh.pipeline_->set_axis("pipeline");
  mesh.pipeline_gradients_->set_axis("pipeline");
  for (Communicator* control : {mesh.control_.get(), mesh.data_control_.get(),
                                mesh.shard_control_.get(), mesh.model_control_.get()})
    control->set_axis("control");
  return mesh;
}

int64_t DeviceMesh::bytes_sent() const {
  int64_t total = 0;
  for (const auto* axis : {&shard_, &replicate_, &context_, &tensor_, &pipeline_,
                           &pipeline_gradients_, &tied_stages_, &expert_, &expert_shard_}) {
    if (*axis) total += (*axis)->counters().bytes_sent;
  }
  return total;
}

Communicator* DeviceMesh::TieStages(const std::vector<int>& stages) {
  const bool holds = std::find(stages.begin(), stages.end(), pipeline_->rank()) != stages.end();
  tied_stages_ = pipeline_->Split(holds ? 0 : -1, pipeline_->rank());
  if (tied_stages_) tied_stages_->set_axis("tied stages");
  return tied_stages_.get();
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
