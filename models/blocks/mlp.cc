#include "models/blocks/mlp.h"

#include <cmath>

#include "models/blocks/activate.h"
#include "models/family.h"

namespace shoal {

LinearLayout LinearLayoutOf(const ModelConfig& config) {
  return config.family->stack.linear == StackOptions::Linear::kOutIn ? LinearLayout::kOutIn
                                                                     : LinearLayout::kInOut;
}

double ResidualStddev(const ModelConfig& config) {
  const bool scaled =
      config.family->stack.residual_init == StackOptions::ResidualInit::kDepthScaled;
  return config.initializer_range /
         (scaled ? std::sqrt(2.0 * static_cast<double>(config.num_layers)) : 1.0);
}

namespace {

bool IsGated(const ModelConfig& config) {
  return config.family->stack.mlp != StackOptions::Mlp::kPlain;
}

// This rank's share of the inner width, once an output that has that width; none on one rank.
std::vector<std::vector<TensorCut::Range>> WidthRanges(int64_t width, size_t outputs,
                                                       const TensorPlace& place) {
  if (place.size == 1) return {};
  return {outputs, {EvenRange(width, place)}};
}

Projection::Options UpOptions(const ModelConfig& config, const std::string& module, int64_t width,
                              const TensorPlace& place) {
  const bool gated = IsGated(config);
  return {.in = config.hidden_size,
          .slots = gated ? std::vector<std::string>{module + "gate", module + "up"}
                         : std::vector<std::string>{module + "up"},
          .outs = gated ? std::vector<int64_t>{width, width} : std::vector<int64_t>{width},
          .bias = config.mlp_bias,
          .layout = LinearLayoutOf(config),
          .stddev = config.initializer_range,
          .cut = Projection::Options::Cut::kOutputs,
          .ranges = WidthRanges(width, gated ? 2 : 1, place)};
}

Projection::Options DownOptions(const ModelConfig& config, const std::string& module, int64_t width,
                                const TensorPlace& place) {
  return {.in = width,
          .slots = {module + "down"},
          .outs = {config.hidden_size},
          .bias = config.mlp_bias,
          .layout = LinearLayoutOf(config),
          .stddev = ResidualStddev(config),
          .cut = Projection::Options::Cut::kInputs,
          .ranges = WidthRanges(width, 1, place)};
}

}  // namespace

Mlp::Mlp(ParameterList& parameters, const ModelConfig& config, const std::string& module,
         int64_t width)
    : gated_(IsGated(config)),
      activation_(config.activation),
      up_(parameters, UpOptions(config, module, width, parameters.place())),
      down_(parameters, DownOptions(config, module, width, parameters.place())) {}

Tensor Mlp::Part(const ForwardContext& ctx, const Tensor& x_BTC) const {
  const std::vector<Tensor> inner_BTF = up_.Forward(ctx.weights, x_BTC, ctx.adapters);
  const Tensor activated_BTF = gated_ ? ActivateGated(activation_, inner_BTF[0], inner_BTF[1])
                                      : Activate(activation_, inner_BTF[0]);
  return down_.Forward(ctx.weights, activated_BTF, ctx.adapters)[0];
}

}  // namespace shoal
