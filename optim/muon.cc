#include "optim/muon.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <ATen/ATen.h>

#include "core/status.h"
#include "kernels/matmul.h"

namespace shoal {
namespace {

Tensor Product(const Tensor& a, const Tensor& b) {
  Tensor c = at::empty({a.size(0), b.size(1)}, a.options());
  MatMul(a, b, c);
  return c;
}

// What the matrices are orthogonalised in.
at::TensorOptions MasterOptions(const WholeUnit& unit) {
  return at::TensorOptions(unit.master).device(unit.device);
}

// First element of the unit that this rank owns.
int64_t OwnedBegin(const WholeUnit& unit) {
  return unit.holds_all ? 0 : unit.layout->shard_numel() * unit.shard->rank();
}

// Where each weight begins in a buffer of whole weights, and where the last one ends.
std::vector<int64_t> WholeOffsets(const WholeUnit& unit) {
  std::vector<int64_t> offsets = {0};
  for (const WholeWeight& weight : unit.weights)
    offsets.push_back(offsets.back() + weight.spec->full_numel());
  return offsets;
}

// Calls visit(this rank's elements of `flat`, the same elements of `wholes`) for each run of the
// unit's weights; `counted`: for those runs alone that this tensor-parallel rank counts.
template <class Visit>
void ForRuns(const WholeUnit& unit, const Tensor& flat, const Tensor& wholes, bool counted,
             const Visit& visit) {
  const std::vector<int64_t> offsets = WholeOffsets(unit);
  for (size_t i = 0; i < unit.weights.size(); ++i) {
    const WholeWeight& weight = unit.weights[i];
    int64_t at = unit.layout->offset(weight.parameter);
    for (const WholePart::Run& run :
         CountedRuns(*weight.spec, 0, weight.spec->numel(), unit.tensor_rank())) {
      if (run.counted || !counted)
        visit(flat.narrow(0, at, run.count), wholes.narrow(0, offsets[i] + run.first, run.count));
      at += run.count;
    }
  }
}

// (sum of all weights, whole, one after the other) from this rank's whole unit.
Tensor Whole(const WholeUnit& unit, const Tensor& flat) {
  Tensor wholes = at::zeros({WholeOffsets(unit).back()}, MasterOptions(unit));
  ForRuns(unit, flat, wholes, /*counted=*/true,
          [](const Tensor& mine, Tensor whole) { whole.copy_(mine); });
  if (unit.tensor_size() > 1) unit.tensor->AllReduce(wholes);
  return wholes;
}

// The rank that works on each matrix of each unit: the costliest first, to whom has least to do.
std::vector<std::vector<int>> DealOut(std::span<const WholeUnit> units, int ranks) {
  struct Work {
    size_t unit, weight;
    double cost;
  };
  std::vector<Work> works;
  std::vector<std::vector<int>> owners;
  for (size_t u = 0; u < units.size(); ++u) {
    owners.emplace_back(units[u].weights.size());
    for (size_t w = 0; w < units[u].weights.size(); ++w) {
      const auto& shape = units[u].weights[w].shape;
      const double rows = static_cast<double>(shape[0]), columns = static_cast<double>(shape[1]);
      works.push_back({u, w, rows * columns * std::min(rows, columns)});
    }
  }
  std::stable_sort(works.begin(), works.end(),
                   [](const Work& a, const Work& b) { return a.cost > b.cost; });
  std::vector<double> load(ranks);
  for (const Work& work : works) {
    const auto idle = std::min_element(load.begin(), load.end());
    *idle += work.cost;
    owners[work.unit][work.weight] = static_cast<int>(idle - load.begin());
  }
  return owners;
}

}  // namespace

Tensor Orthogonalize(const Tensor& matrix, int iterations) {
  constexpr double kA = 3.4445, kB = -4.7750, kC = 2.0315, kSmallestNorm = 1e-7;
  const bool tall = matrix.size(0) > matrix.size(1);
  Tensor x = (tall ? matrix.t() : matrix).contiguous();
  // A device's norm is not waited for.
  x = x.is_cpu() ? x / std::max(x.norm().item<double>(), kSmallestNorm)
                 : x / x.norm().clamp_min(kSmallestNorm);
  for (int i = 0; i < iterations; ++i) {
    const Tensor a = Product(x, x.t());
    const Tensor polynomial = Product(a, a).mul_(kC).add_(a, kB);
    x = Product(polynomial, x).add_(x, kA);
  }
  return tall ? x.t() : x;
}

std::vector<WholeRule::State> Muon::element_states(const std::vector<int64_t>& shape,
                                                   at::ScalarType master) const {
  return {{.name = "muon_momentum", .dtype = master}};
}

std::vector<WholeRule::State> Muon::shared_states(const std::vector<int64_t>& shape,
                                                  at::ScalarType master) const {
  return {};
}

std::vector<WholeRule::Call> Muon::Calls(const WholeUnitShape& unit) const {
  int64_t wholes = 0;
  for (const std::vector<int64_t>& shape : unit.weights) wholes += shape[0] * shape[1];
  std::vector<Call> calls(2, {true, CollectiveKind::kAllReduce, unit.master, wholes});
  if (unit.holds_all) {
    calls.push_back({false, CollectiveKind::kAllReduce, unit.master, unit.padded_numel});
  } else {
    calls.push_back({false, CollectiveKind::kAllGather, unit.master, unit.shard_numel});
    calls.push_back({false, CollectiveKind::kReduceScatter, unit.master, unit.shard_numel});
  }
  return calls;
}

void Muon::Update(std::span<WholeUnit> units, const UpdateOptions& options) const {
  for (size_t begin = 0; begin < units.size();) {
    const WholeUnit& first = units[begin];
    const size_t ranks = static_cast<size_t>(first.shard->size()) * first.tensor_size();
    size_t end = begin, matrices = 0;
    while (end < units.size() && !FillsRound(matrices, ranks) && units[end].shard == first.shard)
      matrices += units[end++].weights.size();
    UpdateRound(units.subspan(begin, end - begin), options);
    begin = end;
  }
}

// What is to be orthogonalised, of the elements that this rank owns.
Tensor Muon::Momenta(WholeUnit& unit, double grad_scale) const {
  Tensor flat =
      at::zeros({unit.holds_all ? unit.layout->padded_numel() : unit.layout->shard_numel()},
                MasterOptions(unit));
  for (WholeWeight& weight : unit.weights) {
    for (WholePart& part : weight.parts) {
      const Tensor gradient = part.gradients.to(unit.master) * grad_scale;
      Tensor& momentum = part.states[0];
      momentum.lerp_(gradient, 1 - options_.momentum);
      flat.narrow(0, part.offset - OwnedBegin(unit), momentum.numel())
          .copy_(options_.nesterov ? gradient.lerp(momentum, options_.momentum) : momentum);
    }
  }
  return flat;
}

void Muon::UpdateRound(std::span<WholeUnit> units, const UpdateOptions& options) const {
  Communicator& shard = *units[0].shard;
  const int tensor_size = units[0].tensor_size();
  std::vector<Tensor> wholes;
  for (WholeUnit& unit : units) {
    Tensor flat = Momenta(unit, options.grad_scale);
    if (!unit.holds_all && shard.size() > 1) {
      Tensor all = at::empty({unit.layout->padded_numel()}, MasterOptions(unit));
      shard.AllGather(all, flat);
      flat = std::move(all);
    }
    wholes.push_back(Whole(unit, flat));
  }
  const auto owners = DealOut(units, shard.size() * tensor_size);
  const int me = shard.rank() * tensor_size + units[0].tensor_rank();
  for (size_t u = 0; u < units.size(); ++u) {
    WholeUnit& unit = units[u];
    const std::vector<int64_t> offsets = WholeOffsets(unit);
    for (size_t w = 0; w < unit.weights.size(); ++w) {
      Tensor whole = wholes[u].slice(0, offsets[w], offsets[w + 1]);
      if (owners[u][w] == me) {
        whole.copy_(
            Orthogonalize(whole.view(unit.weights[w].shape), options_.iterations).reshape({-1}));
      } else {
        whole.zero_();
      }
    }
    if (tensor_size > 1) unit.tensor->AllReduce(wholes[u]);
    Tensor steps = at::zeros({unit.layout->padded_numel()}, MasterOptions(unit));
    ForRuns(unit, steps, wholes[u], /*counted=*/false,
            [](Tensor mine, const Tensor& whole) { mine.copy_(whole); });
    wholes[u] = Tensor();
    if (unit.holds_all) {
      if (shard.size() > 1) shard.AllReduce(steps);
    } else if (shard.size() > 1) {
      Tensor mine = at::empty({unit.layout->shard_numel()}, MasterOptions(unit));
      shard.ReduceScatter(mine, steps);
      steps = std::move(mine);
    }
    Apply(unit, steps, options);
  }
}

void Muon::Apply(WholeUnit& unit, const Tensor& steps, const UpdateOptions& options) const {
  for (WholeWeight& weight : unit.weights) {
    const std::vector<int64_t> shape = weight.spec->full_shape();
    const double rows = static_cast<double>(shape[0]), columns = static_cast<double>(shape[1]);
    const double scale = options_.scale == Scale::kOriginal
                             ? std::sqrt(std::max(1.0, rows / columns))
                             : 0.2 * std::sqrt(std::max(rows, columns));
    const double rate = options.learning_rate * weight.spec->learning_rate_multiplier;
    for (WholePart& part : weight.parts) {
      Tensor weights = part.master.Read();
      weights.mul_(1 - rate * weight.WeightDecay(options_.weight_decay));
      weights.add_(steps.narrow(0, part.offset - OwnedBegin(unit), weights.numel()), -rate * scale);
      part.master.RoundAndKeep(weights);
    }
  }
}

}  // namespace shoal
