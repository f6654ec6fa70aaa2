#include "trainer/block_runner.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

namespace shoal {

BlockRunner::BlockPass BlockRunner::Forward(int block, const Batch& batch, const Tensor& hidden_BTC,
                                            double denominator) {
  BlockPass pass;
  if (hidden_BTC.defined()) {
    pass.in.hidden_BTC = hidden_BTC.detach();
    pass.in.hidden_BTC.set_requires_grad(at::GradMode::is_enabled());
  }
  ForwardContext context;
  context.weights = parameters_.BeginForward(block);
  context.batch = &batch;
  context.loss_denominator = denominator;
  pass.out = model_.blocks[block]->Forward(context, pass.in);
  return pass;
}

void BlockRunner::Backward(int block, int micro_batch, BlockPass pass, Tensor& grad_hidden_BTC) {
  parameters_.BeginBackward(block, micro_batch);
  const bool is_head = pass.out.loss.defined();
  const Tensor& root = is_head ? pass.out.loss : pass.out.hidden_BTC;
  if (root.requires_grad()) {
    torch::autograd::backward(
        {root}, is_head ? std::vector<Tensor>{} : std::vector<Tensor>{grad_hidden_BTC});
  }
  grad_hidden_BTC = pass.in.hidden_BTC.defined() ? pass.in.hidden_BTC.grad() : Tensor();
  parameters_.EndBackward(block, micro_batch);
}

double BlockRunner::ForwardBackward(std::span<const Batch> micro_batches, double denominator) {
  const int num_blocks = static_cast<int>(model_.blocks.size());
  double loss = 0;
  for (int i = 0; i < static_cast<int>(micro_batches.size()); ++i) {
    std::vector<BlockPass> passes;
    Tensor hidden_BTC;
    for (int b = 0; b < num_blocks; ++b) {
      passes.push_back(Forward(b, micro_batches[i], hidden_BTC, denominator));
      hidden_BTC = passes.back().out.hidden_BTC;
    }
    loss += passes.back().out.loss.item<double>();
    Tensor grad_hidden_BTC;
    for (int b = num_blocks - 1; b >= 0; --b) {
      Backward(b, i, std::move(passes.back()), grad_hidden_BTC);
      passes.pop_back();
    }
  }
  return loss;
}

double BlockRunner::Loss(const Batch& batch, double denominator) {
  at::NoGradGuard no_grad;
  Activations out;
  for (int b = 0; b < static_cast<int>(model_.blocks.size()); ++b) {
    out = Forward(b, batch, out.hidden_BTC, denominator).out;
  }
  return out.loss.item<double>();
}

}  // namespace shoal
