#include "optim/adamw_8bit.h"

#include <algorithm>
#include <array>
#include <cmath>

#include <ATen/ATen.h>

#include "kernels/optimizer_step.h"

namespace shoal {
namespace {

int64_t NumBlocks(const std::vector<int64_t>& shape) {
  int64_t numel = 1;
  for (int64_t size : shape) numel *= size;
  return (numel + AdamW8Bit::kBlock - 1) / AdamW8Bit::kBlock;
}

Tensor Dequantized(const WholePart& part, int moment, const Tensor& code, const Tensor& scales) {
  Tensor values = code.to(scales.scalar_type()).index_select(0, part.states[moment].to(at::kInt));
  for (const WholePart::Run& run : part.runs) {
    ForRectangles(values.narrow(0, run.offset, run.count), run.first, AdamW8Bit::kBlock,
                  [&](int64_t block, int64_t, const Tensor& piece) {
                    Tensor(piece).mul_(scales.narrow(0, block, piece.size(0)).unsqueeze(1));
                  });
  }
  return values;
}

void RaiseToMagnitudes(const WholePart& part, const Tensor& values, const Tensor& scales) {
  for (const WholePart::Run& run : part.runs) {
    ForRectangles(values.narrow(0, run.offset, run.count), run.first, AdamW8Bit::kBlock,
                  [&](int64_t block, int64_t, const Tensor& piece) {
                    Tensor largest = scales.narrow(0, block, piece.size(0));
                    largest.copy_(at::maximum(largest, piece.abs().amax({1})));
                  });
  }
}

// Each value's nearest number.
void Quantize(WholePart& part, int moment, Tensor values, const Tensor& code,
              const Tensor& scales) {
  const Tensor divisors = at::where(scales > 0, scales, at::ones_like(scales));
  for (const WholePart::Run& run : part.runs) {
    ForRectangles(values.narrow(0, run.offset, run.count), run.first, AdamW8Bit::kBlock,
                  [&](int64_t block, int64_t, const Tensor& piece) {
                    Tensor(piece).div_(divisors.narrow(0, block, piece.size(0)).unsqueeze(1));
                  });
  }
  const Tensor middles = ((code.slice(0, 1) + code.slice(0, 0, -1)) / 2).to(scales.scalar_type());
  part.states[moment].copy_(at::bucketize(values, middles, /*out_int32=*/true));
}

}  // namespace

Tensor DynamicCode(bool is_signed) {
  std::vector<double> numbers = {0, 1};
  for (int decade = 0; decade < 7; ++decade) {
    const int parts = 1 << (is_signed ? decade : decade + 1);
    for (int part = 0; part < parts; ++part) {
      const double number = std::pow(10.0, decade - 6) * (0.1 + 0.9 * (part + 0.5) / parts);
      numbers.push_back(number);
      if (is_signed) numbers.push_back(-number);
    }
  }
  std::sort(numbers.begin(), numbers.end());
  return at::tensor(numbers, at::kDouble);
}

AdamW8Bit::AdamW8Bit(const Options& options)
    : options_(options), codes_{DynamicCode(true), DynamicCode(false)} {}

std::vector<WholeRule::State> AdamW8Bit::element_states(const std::vector<int64_t>& shape,
                                                        at::ScalarType master) const {
  return {{.name = "adam8_m", .dtype = at::kByte}, {.name = "adam8_v", .dtype = at::kByte}};
}

std::vector<WholeRule::State> AdamW8Bit::shared_states(const std::vector<int64_t>& shape,
                                                       at::ScalarType master) const {
  return {{.name = "adam8_m_scale", .dtype = master, .numel = NumBlocks(shape)},
          {.name = "adam8_v_scale", .dtype = master, .numel = NumBlocks(shape)}};
}

std::vector<WholeRule::Call> AdamW8Bit::Calls(const WholeUnitShape& unit) const {
  int64_t blocks = 0;
  for (const std::vector<int64_t>& shape : unit.weights) blocks += 2 * NumBlocks(shape);
  std::vector<Call> calls = {{true, CollectiveKind::kAllReduce, unit.master, blocks}};
  if (!unit.holds_all) calls.push_back({false, CollectiveKind::kAllReduce, unit.master, blocks});
  return calls;
}

void AdamW8Bit::Update(std::span<WholeUnit> units, const UpdateOptions& options) const {
  for (WholeUnit& unit : units) UpdateUnit(unit, options);
}

void AdamW8Bit::UpdateUnit(WholeUnit& unit, const UpdateOptions& options) const {
  // [weight][part]
  std::vector<std::vector<std::array<Tensor, 2>>> moments(unit.weights.size());
  int64_t num_scales = 0;
  for (size_t w = 0; w < unit.weights.size(); ++w) {
    WholeWeight& weight = unit.weights[w];
    num_scales += 2 * NumBlocks(weight.shape);
    for (WholePart& part : weight.parts) {
      auto& [first, second] = moments[w].emplace_back();
      first = Dequantized(part, 0, codes_[0], weight.shared[0]);
      second = Dequantized(part, 1, codes_[1], weight.shared[1]);
      Tensor weights = part.master.Read();
      AdamWStep(weights, part.gradients, first, second, part.master.rounded,
                {.learning_rate = options.learning_rate * weight.spec->learning_rate_multiplier,
                 .beta1 = options_.beta1,
                 .beta2 = options_.beta2,
                 .epsilon = options_.epsilon,
                 .weight_decay = weight.WeightDecay(options_.weight_decay),
                 .grad_scale = options.grad_scale,
                 .step = options.step});
      part.master.Keep(weights);
    }
  }
  const Tensor largest = ReduceOverUnit(unit, ReduceOp::kMax, [&](int shard) {
    Tensor mine = at::zeros({num_scales}, unit.master);
    int64_t at = 0;
    for (size_t w = 0; w < unit.weights.size(); ++w) {
      const WholeWeight& weight = unit.weights[w];
      const int64_t blocks = NumBlocks(weight.shape);
      for (int moment = 0; moment < 2; ++moment, at += blocks) {
        for (size_t p = 0; p < weight.parts.size(); ++p) {
          if (weight.parts[p].shard == shard)
            RaiseToMagnitudes(weight.parts[p], moments[w][p][moment], mine.narrow(0, at, blocks));
        }
      }
    }
    return mine;
  });
  int64_t at = 0;
  for (size_t w = 0; w < unit.weights.size(); ++w) {
    WholeWeight& weight = unit.weights[w];
    for (int moment = 0; moment < 2; ++moment) {
      weight.shared[moment].copy_(largest.narrow(0, at, weight.shared[moment].numel()));
      at += weight.shared[moment].numel();
      for (size_t p = 0; p < weight.parts.size(); ++p)
        Quantize(weight.parts[p], moment, moments[w][p][moment], codes_[moment],
                 weight.shared[moment]);
    }
  }
}

}  // namespace shoal
