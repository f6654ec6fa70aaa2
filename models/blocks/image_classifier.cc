#include "models/blocks/image_classifier.h"

#include <cmath>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "models/blocks/embedding.h"
#include "models/blocks/parameter_list.h"
#include "models/family.h"

namespace shoal {
namespace {

// Legend: C copies, B rows of a copy, N = C * B, H channels, S side of an image, K = 9 H, O
// outputs.

// A weight for ATen's operations, whose gradient is added to Parameter::grad.
struct TrackedWeight : torch::autograd::Function<TrackedWeight> {
  // The value apart from autograd's version check: ZeRO refills the flat buffer under it.
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& value,
                        const Tensor& grad) {
    ctx->saved_data["grad"] = grad;
    return value.variable_data();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    ctx->saved_data["grad"].toTensor().add_(grads[0]);
    return {Tensor(), Tensor()};
  }
};

Tensor Tracked(const Parameter& parameter) {
  return parameter.grad.defined() ? TrackedWeight::apply(parameter.value, parameter.grad)
                                  : parameter.value;
}

// Matrices and biases that the copies have one each of, beside one another.
class Layer : public Block {
 protected:
  Layer(ParameterList& list, const ModelConfig& config, const std::string& slot, int64_t out,
        int64_t in)
      : copies_(config.copies), out_(out), in_(in) {
    list.Matrix(slot + ".weight", {out, in}, std::sqrt(2.0 / static_cast<double>(in)));  // He 2015
    list.Bias(slot + ".bias", out);
    parameters_ = list.Take();
    for (ParameterSpec& spec : parameters_) {
      if (copies_ > 1) spec.shape.insert(spec.shape.begin(), copies_);
    }
    ties_.resize(parameters_.size());
  }

  // x: (N, in) -> (N, out).
  Tensor Product(const ForwardContext& ctx, const Tensor& x_NI) const {
    const Tensor weight = Tracked(ctx.weights[0]), bias = Tracked(ctx.weights[1]);
    if (copies_ == 1) return at::addmm(bias, x_NI, weight.t());
    const Tensor y_CBO = at::baddbmm(bias.view({copies_, 1, out_}),
                                     x_NI.reshape({copies_, -1, in_}), weight.transpose(1, 2));
    return y_CBO.reshape({-1, out_});
  }

  // The pixels, from 0 to 1, or what the block before gave: (N, ...).
  static Tensor Input(const ForwardContext& ctx, const Activations& in, const ModelConfig& config) {
    if (in.hidden_BTC.defined()) return in.hidden_BTC;
    CheckIndices(ctx.InHostMemory().tokens_BT, config.max_pixel + 1, 0, "pixel");
    return ctx.batch->tokens_BT.to(ctx.weights[0].value.scalar_type())
        .div_(static_cast<double>(config.max_pixel));
  }

  const int64_t copies_, out_, in_;
};

class Convolution final : public Layer {
 public:
  struct Sizes {
    int64_t channels, outputs, side;
  };
  Convolution(ParameterList& list, const ModelConfig& config, const Sizes& sizes)
      : Layer(list, config, "layer.convolution", sizes.outputs, 9 * sizes.channels),
        config_(config),
        channels_(sizes.channels),
        side_(sizes.side) {}

  Activations Forward(const ForwardContext& ctx, const Activations& in) const override {
    const Tensor x_NHSS = Input(ctx, in, config_).reshape({-1, channels_, side_, side_});
    const int64_t N = x_NHSS.size(0), places = side_ * side_;
    const Tensor patches_NKP = at::im2col(x_NHSS, {3, 3}, {1, 1}, {1, 1}, {1, 1});
    // Each place of each image is a row of the product.
    const Tensor y_RO = Product(ctx, patches_NKP.transpose(1, 2).reshape({N * places, in_}));
    const Tensor y_NOSS =
        y_RO.view({N, places, out_}).transpose(1, 2).reshape({N, out_, side_, side_});
    Activations out;
    out.hidden_BTC = at::max_pool2d(y_NOSS.relu(), {2, 2}).flatten(1);
    return out;
  }

  double ForwardFlopsPerToken(int64_t sequence_length) const override {
    return 2.0 * static_cast<double>(in_ * out_ * side_ * side_);
  }

 private:
  const ModelConfig config_;
  const int64_t channels_, side_;
};

class Dense final : public Layer {
 public:
  Dense(ParameterList& list, const ModelConfig& config, int64_t in)
      : Layer(list, config, "dense", config.intermediate_size, in), config_(config) {}

  Activations Forward(const ForwardContext& ctx, const Activations& in) const override {
    Activations out;
    out.hidden_BTC = Product(ctx, Input(ctx, in, config_)).relu();
    return out;
  }

  double ForwardFlopsPerToken(int64_t sequence_length) const override {
    return 2.0 * static_cast<double>(in_ * out_);
  }

 private:
  const ModelConfig config_;
};

class ClassHead final : public Layer {
 public:
  ClassHead(ParameterList& list, const ModelConfig& config)
      : Layer(list, config, "head", config.vocab_size, config.intermediate_size) {}

  Activations Forward(const ForwardContext& ctx, const Activations& in) const override {
    const Tensor logits_NO = Product(ctx, in.hidden_BTC);
    Activations out;
    if (ctx.head_mode == HeadMode::kLogits) {
      out.logits_BTV = logits_NO.unsqueeze(1);
      return out;
    }
    SHOAL_CHECK(ctx.head_mode != HeadMode::kScores) << "a classifier gives no scores";
    const Tensor targets_N = ctx.batch->targets_BT.reshape({-1});
    CheckIndices(ctx.InHostMemory().targets_BT, out_, Batch::kIgnoreIndex, "class");
    const Tensor counts_N = targets_N.ne(Batch::kIgnoreIndex);
    const Tensor logprobs_NO = at::log_softmax(logits_NO / ctx.temperature, -1);
    const Tensor target_N = logprobs_NO.gather(1, targets_N.clamp_min(0).unsqueeze(1)).squeeze(1);
    if (ctx.head_mode == HeadMode::kLogprobs) {
      out.logprobs_BT = (target_N * counts_N).unsqueeze(1);
      return out;
    }
    Tensor losses_N = -target_N;
    if (ctx.label_smoothing > 0)
      losses_N = losses_N * (1 - ctx.label_smoothing) - logprobs_NO.mean(-1) * ctx.label_smoothing;
    losses_N = losses_N * counts_N;
    if (copies_ == 1) {
      out.loss = losses_N.sum() / ctx.loss_denominator;
    } else {
      const Tensor counts_C = counts_N.view({copies_, -1}).sum(1).clamp_min(1);
      out.loss = (losses_N.view({copies_, -1}).sum(1) / counts_C).sum();
    }
    return out;
  }

  double ForwardFlopsPerToken(int64_t sequence_length) const override {
    return 2.0 * static_cast<double>(in_ * out_);
  }
};

}  // namespace

bool IsClassifier(const ModelConfig& config) {
  return config.family->stack.kind == StackOptions::Kind::kImageClassifier;
}

bool CanStackCopies(const ModelConfig& config) { return IsClassifier(config); }

absl::StatusOr<Model> BuildImageClassifier(const ModelConfig& config, const TensorPlace& place) {
  if (place.size > 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "an image classifier's matrices are not shared, expected 1, got ", place.size));
  }
  Model model;
  model.config = config;
  absl::Status status = absl::OkStatus();
  const auto add = [&](int64_t layer, const auto& make) {
    ParameterList list(model.config, layer, place);
    model.blocks.push_back(make(list));
    if (status.ok()) status = list.status();
  };
  int64_t channels = config.image_channels, side = config.image_size;
  for (int64_t i = 0; i < config.num_layers; ++i) {
    if (side < 2) {
      return absl::InvalidArgumentError(absl::StrCat("images of ", config.image_size, " x ",
                                                     config.image_size, " are too small for ",
                                                     config.num_layers, " convolutions"));
    }
    const int64_t outputs = config.hidden_size << i;
    add(i, [&](ParameterList& list) {
      return std::make_unique<Convolution>(
          list, config, Convolution::Sizes{.channels = channels, .outputs = outputs, .side = side});
    });
    channels = outputs;
    side /= 2;
  }
  add(0, [&](ParameterList& list) {
    return std::make_unique<Dense>(list, config, channels * side * side);
  });
  add(0, [&](ParameterList& list) { return std::make_unique<ClassHead>(list, config); });
  SHOAL_RETURN_IF_ERROR(status);
  return model;
}

}  // namespace shoal
