// The checkpoints of tests/fixtures/models and what transformers computed with them.
#pragma once

#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "models/forward.h"
#include "models/weights.h"

namespace shoal {

inline const char kFixtures[] = "tests/fixtures/models/";

template <typename T>
T ValueOrDie(absl::StatusOr<T> result) {
  SHOAL_CHECK(result.ok()) << result.status();
  return *std::move(result);
}

inline Tensor ReadTensor(const SafetensorsReader& reader, const std::string& name) {
  const SafetensorsEntry* entry = reader.Find(name);
  SHOAL_CHECK(entry != nullptr) << reader.path() << " has no " << name;
  Tensor tensor = at::empty(entry->shape, at::TensorOptions(*DtypeOfSafetensors(entry->dtype)));
  SHOAL_CHECK(reader.Read(*entry, 0, tensor).ok());
  return tensor;
}

struct Fixture {
  std::string directory;
  Model model;
  std::unique_ptr<SafetensorsReader> expected;
  Batch batch;
};

inline Tensor Positions(const Tensor& tokens_BT, int64_t first = 0) {
  return at::arange(first, first + tokens_BT.size(1), at::kLong)
      .expand(tokens_BT.sizes())
      .contiguous();
}

inline Fixture LoadFixture(const std::string& name) {
  PosixFileSystem files;
  Fixture fixture;
  fixture.directory = kFixtures + name;
  fixture.model = ValueOrDie(BuildModel(ValueOrDie(LoadModelConfig(files, fixture.directory))));
  fixture.expected =
      ValueOrDie(SafetensorsReader::Open(files, fixture.directory + "/expected.safetensors"));
  fixture.batch.tokens_BT = ReadTensor(*fixture.expected, "tokens");
  fixture.batch.targets_BT = ReadTensor(*fixture.expected, "targets");
  fixture.batch.positions_BT = Positions(fixture.batch.tokens_BT);
  fixture.batch.num_targets =
      fixture.batch.targets_BT.ne(Batch::kIgnoreIndex).sum().item<int64_t>();
  return fixture;
}

inline ModelWeights LoadFixtureWeights(const Fixture& fixture, at::ScalarType dtype) {
  PosixFileSystem files;
  return ValueOrDie(LoadAllWeights(files, fixture.model, fixture.directory, dtype));
}

// Gives every weight but buffers a zeroed gradient, those of a block end to end, tied ones shared.
inline void AddGradients(const Model& model, ModelWeights& weights) {
  for (size_t b = 0; b < weights.size(); ++b) {
    int64_t total = 0, offset = 0;
    for (const Parameter& p : weights[b]) total += p.value.numel();
    const Tensor flat = at::zeros({total}, weights[b][0].value.options());
    for (size_t i = 0; i < weights[b].size(); ++i) {
      Parameter& p = weights[b][i];
      if (const auto& tie = model.blocks[b]->ties()[i]) {
        p = weights[tie->block][tie->parameter];
        continue;
      }
      if (model.blocks[b]->parameters()[i].buffer) continue;
      p.value.set_requires_grad(true);
      p.grad = flat.narrow(0, offset, p.value.numel()).view(p.value.sizes());
      offset += p.value.numel();
    }
  }
}

// Largest difference relative to the largest expected magnitude; inf for NaN or another shape.
inline double RelativeError(const Tensor& got, const Tensor& want) {
  if (got.sizes() != want.sizes()) return std::numeric_limits<double>::infinity();
  const Tensor difference = (got.detach().to(at::kDouble) - want.to(at::kDouble)).abs();
  const double error = difference.max().item<double>() /
                       std::max(1e-300, want.to(at::kDouble).abs().max().item<double>());
  return std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
}

}  // namespace shoal
