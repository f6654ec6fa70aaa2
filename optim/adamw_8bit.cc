#include "optim/adamw_8bit.h"

#include <algorithm>
#include <array>
#include <cmath>

#include <ATen/ATen.h>

#include "kernels/device_kernels.h"

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
void Quantize(WholePart& part, int moment, Tensor values, const Tensor& middles,
              const Tensor& scales) {
  const Tensor divisors = at::where(scales > 0, scales, at::ones_like(scales));
  for (const WholePart::Run& run : part.runs) {
    ForRectangles(values.narrow(0, run.offset, run.count), run.first, AdamW8Bit::kBlock,
                  [&](int64_t block, int64_t, const Tensor& piece) {
                    Tensor(piece).div_(divisors.narrow(0, block, piece.size(0)).unsqueeze(1));
                  });
  }
  part.states[moment].copy_(
      at::bucketize(values, middles.to(scales.scalar_type()), /*out_int32=*/true));
}

Tensor MakeTables() {
  const Tensor codes = at::stack({DynamicCode(true), DynamicCode(false)});
  const Tensor middles = (codes.slice(1, 1) + codes.slice(1, 0, -1)) / 2;
  return at::cat({codes, at::constant_pad_nd(middles, {0, 1})});
}

// Of one run of a part. `weights` (n of the part) or undefined, where they are not written;
// `largest` of the weight's first and second moments.
DeviceAdamW8Bit StepOfRun(const WholeWeight& weight, const WholePart& part,
                          const WholePart::Run& run, const Tensor& weights,
                          const std::array<Tensor, 2>& largest, const Tensor& numbers) {
  const auto of_run = [&](const Tensor& x) { return x.narrow(0, run.offset, run.count); };
  DeviceAdamW8Bit step{.first = run.first,
                       .n = run.count,
                       .gradients = of_run(part.gradients).const_data_ptr(),
                       .numbers = numbers.const_data_ptr<float>()};
  for (int moment = 0; moment < 2; ++moment) {
    step.codes[moment] = of_run(part.states[moment]).mutable_data_ptr<uint8_t>();
    step.scales[moment] = weight.shared[moment].const_data_ptr<float>();
    step.largest[moment] = largest[moment].mutable_data_ptr<float>();
  }
  if (!weights.defined()) return step;
  step.weights = of_run(weights).mutable_data_ptr<float>();
  if (const Tensor& copy = part.master.rounded; copy.defined()) {
    step.copy = of_run(copy).mutable_data_ptr();
    step.copy_type = ElementTypeOf(copy.scalar_type());
  }
  return step;
}

// (blocks) of each weight's moments, views of `all`.
std::vector<std::array<Tensor, 2>> CutByWeight(const WholeUnit& unit, const Tensor& all) {
  std::vector<std::array<Tensor, 2>> views;
  int64_t at = 0;
  for (const WholeWeight& weight : unit.weights) {
    const int64_t blocks = NumBlocks(weight.shape);
    views.push_back({all.narrow(0, at, blocks), all.narrow(0, at + blocks, blocks)});
    at += 2 * blocks;
  }
  return views;
}

int64_t NumScales(const WholeUnit& unit) {
  int64_t total = 0;
  for (const WholeWeight& weight : unit.weights) total += 2 * NumBlocks(weight.shape);
  return total;
}

}  // namespace

static_assert(AdamW8Bit::kBlock == kDeviceQuantizedBlock);

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

AdamW8Bit::AdamW8Bit(const Options& options) : options_(options), tables_(MakeTables()) {}

Tensor AdamW8Bit::TablesOn(c10::Device device) const {
  const std::lock_guard lock(mutex_);
  if (tables_.device() != device) tables_ = tables_.to(device);
  return tables_;
}

AdamWOptions AdamW8Bit::OptionsOf(const WholeWeight& weight, const UpdateOptions& options) const {
  return {.learning_rate = options.learning_rate * weight.spec->learning_rate_multiplier,
          .beta1 = options_.beta1,
          .beta2 = options_.beta2,
          .epsilon = options_.epsilon,
          .weight_decay = weight.WeightDecay(options_.weight_decay),
          .grad_scale = options.grad_scale,
          .step = options.step};
}

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
  for (WholeUnit& unit : units) {
    if (const DeviceKernels* device = DeviceKernelsFor(unit.weights[0].shared[0]))
      UpdateByKernels(*device, unit, options);
    else
      UpdateUnit(unit, options);
  }
}

void AdamW8Bit::UpdateUnit(WholeUnit& unit, const UpdateOptions& options) const {
  const Tensor tables = TablesOn(unit.weights[0].shared[0].device());
  // [weight][part]
  std::vector<std::vector<std::array<Tensor, 2>>> moments(unit.weights.size());
  for (size_t w = 0; w < unit.weights.size(); ++w) {
    WholeWeight& weight = unit.weights[w];
    for (WholePart& part : weight.parts) {
      auto& [first, second] = moments[w].emplace_back();
      first = Dequantized(part, 0, tables[0], weight.shared[0]);
      second = Dequantized(part, 1, tables[1], weight.shared[1]);
      Tensor weights = part.master.Read();
      AdamWStep(weights, part.gradients, first, second, part.master.rounded,
                OptionsOf(weight, options));
      part.master.Keep(weights);
    }
  }
  const Tensor largest = ReduceOverUnit(unit, ReduceOp::kMax, [&](int shard) {
    Tensor mine = at::zeros({NumScales(unit)}, unit.weights[0].shared[0].options());
    const auto scales = CutByWeight(unit, mine);
    for (size_t w = 0; w < unit.weights.size(); ++w) {
      const WholeWeight& weight = unit.weights[w];
      for (int moment = 0; moment < 2; ++moment) {
        for (size_t p = 0; p < weight.parts.size(); ++p) {
          if (weight.parts[p].shard == shard)
            RaiseToMagnitudes(weight.parts[p], moments[w][p][moment], scales[w][moment]);
        }
      }
    }
    return mine;
  });
  const auto scales = CutByWeight(unit, largest);
  for (size_t w = 0; w < unit.weights.size(); ++w) {
    WholeWeight& weight = unit.weights[w];
    for (int moment = 0; moment < 2; ++moment) {
      weight.shared[moment].copy_(scales[w][moment]);
      for (size_t p = 0; p < weight.parts.size(); ++p)
        Quantize(weight.parts[p], moment, moments[w][p][moment], tables[2 + moment].slice(0, 0, -1),
                 weight.shared[moment]);
    }
  }
}

void AdamW8Bit::UpdateByKernels(const DeviceKernels& device, WholeUnit& unit,
                                const UpdateOptions& options) const {
  const at::TensorOptions like = unit.weights[0].shared[0].options();
  const Tensor numbers = TablesOn(like.device()).to(at::kFloat);
  Tensor largest = at::zeros({NumScales(unit)}, like);
  const auto own = CutByWeight(unit, largest);
  for (size_t w = 0; w < unit.weights.size(); ++w) {
    WholeWeight& weight = unit.weights[w];
    for (WholePart& part : weight.parts) {
      const Tensor weights = part.master.Read();
      for (const WholePart::Run& run : part.runs)
        device.adamw_8bit(CallOn(part.gradients),
                          StepOfRun(weight, part, run, weights, own[w], numbers),
                          AdamWScalarsOf(OptionsOf(weight, options)));
      part.master.Keep(weights);
    }
  }
  // Of all shards that are held here at once.
  largest = ReduceOverUnit(unit, ReduceOp::kMax, [&](int) { return largest; });
  const auto scales = CutByWeight(unit, largest);
  for (size_t w = 0; w < unit.weights.size(); ++w) {
    WholeWeight& weight = unit.weights[w];
    for (const WholePart& part : weight.parts) {
      for (const WholePart::Run& run : part.runs)
        device.adamw_8bit_codes(CallOn(part.gradients),
                                StepOfRun(weight, part, run, Tensor(), scales[w], numbers),
                                AdamWScalarsOf(OptionsOf(weight, options)));
    }
    for (int moment = 0; moment < 2; ++moment) weight.shared[moment].copy_(scales[w][moment]);
  }
}

}  // namespace shoal
