#include "optim/adafactor.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>

#include "core/scalar_sum.h"

namespace shoal {
namespace {

constexpr double kSquareFloor = 1e-30;   // The paper's epsilon 1
constexpr double kSmallestScale = 1e-3;  // Its epsilon 2

// Sums of a weight: the squares of its elements; of a matrix, those of the gradient's rows and
// columns.
int64_t NumSums(const std::vector<int64_t>& shape) {
  return shape.size() == 2 ? 1 + shape[0] + shape[1] : 1;
}

Tensor Scaled(const WholePart& part, at::ScalarType master, double scale) {
  return part.gradients.to(master) * scale;
}

// sum += the squares of `values`; () float64.
void AddSquares(const Tensor& values, Tensor sum) { sum.add_(values.square().sum(at::kDouble)); }

// Float64 zeros where the unit's weights are.
Tensor ZeroSums(const WholeUnit& unit, int64_t numel) {
  return at::zeros({numel}, at::TensorOptions(at::kDouble).device(unit.device));
}

// The sums at `places`, in host memory.
std::vector<double> ReadAt(const Tensor& sums, std::span<const int64_t> places) {
  std::vector<Tensor> numbers;
  for (const int64_t place : places) numbers.push_back(sums[place]);
  return ReadNumbers(numbers);
}

void AddSums(const WholeUnit& unit, const WholeWeight& weight, int shard, double scale,
             Tensor sums) {
  for (const WholePart& part : weight.parts) {
    if (part.shard != shard) continue;
    const Tensor gradient = weight.is_matrix() ? Scaled(part, unit.master, scale) : Tensor();
    const Tensor weights = part.master.Read();
    for (const WholePart::Run& run : part.runs) {
      if (!run.counted) continue;
      AddSquares(weights.narrow(0, run.offset, run.count), sums[0]);
      if (!weight.is_matrix()) continue;
      const Tensor raised = gradient.narrow(0, run.offset, run.count).square().add_(kSquareFloor);
      ForRectangles(
          raised, run.first, weight.shape[1],
          [&](int64_t row, int64_t column, const Tensor& piece) {
            sums.narrow(0, 1 + row, piece.size(0)).add_(piece.sum({1}, false, at::kDouble));
            sums.narrow(0, 1 + weight.shape[0] + column, piece.size(1))
                .add_(piece.sum({0}, false, at::kDouble));
          });
    }
  }
}

// u of the part's elements.
Tensor Direction(const WholeUnit& unit, const WholeWeight& weight, WholePart& part, double scale,
                 double fresh) {
  Tensor direction = Scaled(part, unit.master, scale);
  if (!weight.is_matrix()) {
    Tensor& moment = part.states[0];
    moment.lerp_(direction.square().add_(kSquareFloor), fresh);
    return direction.mul_(moment.rsqrt());
  }
  // Roots before products: the product of two small means would underflow.
  const Tensor row_factor = (weight.shared[0] / weight.shared[0].mean()).rsqrt_();
  const Tensor column_factor = weight.shared[1].rsqrt();
  for (const WholePart::Run& run : part.runs) {
    ForRectangles(direction.narrow(0, run.offset, run.count), run.first, weight.shape[1],
                  [&](int64_t row, int64_t column, const Tensor& piece) {
                    Tensor(piece)
                        .mul_(row_factor.narrow(0, row, piece.size(0)).unsqueeze(1))
                        .mul_(column_factor.narrow(0, column, piece.size(1)));
                  });
  }
  return direction;
}

}  // namespace

std::vector<WholeRule::State> Adafactor::element_states(const std::vector<int64_t>& shape,
                                                        at::ScalarType master) const {
  if (shape.size() == 2) return {};
  return {{.name = "adafactor_v", .dtype = master}};
}

std::vector<WholeRule::State> Adafactor::shared_states(const std::vector<int64_t>& shape,
                                                       at::ScalarType master) const {
  if (shape.size() != 2) return {};
  return {{.name = "adafactor_row", .dtype = master, .numel = shape[0]},
          {.name = "adafactor_column", .dtype = master, .numel = shape[1]}};
}

std::vector<WholeRule::Call> Adafactor::Calls(const WholeUnitShape& unit) const {
  int64_t sums = 0;
  for (const std::vector<int64_t>& shape : unit.weights) sums += NumSums(shape);
  std::vector<Call> calls;
  for (const int64_t numel : {sums, static_cast<int64_t>(unit.weights.size())}) {
    if (!unit.holds_all) calls.push_back({false, CollectiveKind::kAllReduce, at::kDouble, numel});
    calls.push_back({true, CollectiveKind::kAllReduce, at::kDouble, numel});
  }
  return calls;
}

void Adafactor::Update(std::span<WholeUnit> units, const UpdateOptions& options) const {
  for (WholeUnit& unit : units) UpdateUnit(unit, options);
}

void Adafactor::UpdateUnit(WholeUnit& unit, const UpdateOptions& options) const {
  const double fresh = std::pow(static_cast<double>(options.step), -options_.decay_exponent);
  const double scale = options.grad_scale;
  const int64_t num_weights = static_cast<int64_t>(unit.weights.size());
  std::vector<int64_t> offsets = {0};
  for (const WholeWeight& weight : unit.weights)
    offsets.push_back(offsets.back() + NumSums(weight.shape));

  const Tensor sums = ReduceOverUnit(unit, ReduceOp::kSum, [&](int shard) {
    Tensor mine = ZeroSums(unit, offsets.back());
    for (int64_t i = 0; i < num_weights; ++i)
      AddSums(unit, unit.weights[i], shard, scale, mine.slice(0, offsets[i], offsets[i + 1]));
    return mine;
  });

  std::vector<std::vector<Tensor>> directions(num_weights);
  for (int64_t i = 0; i < num_weights; ++i) {
    WholeWeight& weight = unit.weights[i];
    if (weight.is_matrix()) {
      const int64_t rows = weight.shape[0], columns = weight.shape[1];
      const auto mean = [&](int64_t first, int64_t count, int64_t of) {
        return (sums.narrow(0, offsets[i] + first, count) / static_cast<double>(of))
            .to(unit.master);
      };
      weight.shared[0].lerp_(mean(1, rows, columns), fresh);
      weight.shared[1].lerp_(mean(1 + rows, columns, rows), fresh);
    }
    for (WholePart& part : weight.parts)
      directions[i].push_back(Direction(unit, weight, part, scale, fresh));
  }

  const Tensor squares = ReduceOverUnit(unit, ReduceOp::kSum, [&](int shard) {
    Tensor mine = ZeroSums(unit, num_weights);
    for (int64_t i = 0; i < num_weights; ++i) {
      for (size_t p = 0; p < directions[i].size(); ++p) {
        const WholePart& part = unit.weights[i].parts[p];
        if (part.shard != shard) continue;
        for (const WholePart::Run& run : part.runs) {
          if (run.counted) AddSquares(directions[i][p].narrow(0, run.offset, run.count), mine[i]);
        }
      }
    }
    return mine;
  });

  const std::vector<double> weight_squares = ReadAt(sums, std::span(offsets).first(num_weights)),
                            step_squares = ReadNumbers({squares});
  for (int64_t i = 0; i < num_weights; ++i) {
    WholeWeight& weight = unit.weights[i];
    const double numel = static_cast<double>(weight.spec->full_numel());
    const double rms = std::sqrt(weight_squares[i] / numel);
    const double size = std::sqrt(step_squares[i] / numel);
    const double rate = options.learning_rate * weight.spec->learning_rate_multiplier;
    const double step = rate * (options_.scale_parameter ? std::max(kSmallestScale, rms) : 1.0) /
                        std::max(1.0, size / options_.clip_threshold);
    for (size_t p = 0; p < weight.parts.size(); ++p) {
      WholePart& part = weight.parts[p];
      Tensor weights = part.master.Read();
      weights.mul_(1 - rate * weight.WeightDecay(options_.weight_decay));
      weights.add_(directions[i][p], -step);
      part.master.RoundAndKeep(weights);
    }
  }
}

}  // namespace shoal
