// Speed of each kernel beside ATen's own path, one thread: `kernel_bench [S|M] [float32|bfloat16]`.
// Products print GFLOP/s, the rest milliseconds and GB/s of the bytes that must move.
#include <time.h>

#include <cstdio>
#include <cstring>
#include <functional>

#include <ATen/ATen.h>

#include "kernels/activation.h"
#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
#include "kernels/linear.h"
#include "kernels/matmul.h"
#include "kernels/norm.h"
#include "kernels/optimizer_step.h"
#include "kernels/paged_attention.h"
#include "kernels/reference.h"
#include "kernels/rotary.h"
#include "kernels/threads.h"

namespace shoal {
namespace {

struct Size {
  const char* name;
  int64_t batch, length, channels, features, vocabulary, heads;
  int64_t rows() const { return batch * length; }
};
constexpr Size kSizes[] = {{"S", 4, 256, 256, 688, 4096, 4}, {"M", 4, 512, 512, 1376, 8192, 8}};

// Processor time of this one thread: other programs on the machine disturb it less than wall time.
double CpuMilliseconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return now.tv_sec * 1e3 + now.tv_nsec * 1e-6;
}

double Milliseconds(const std::function<void()>& work) {
  work();
  double best = 1e30, spent = 0;
  while (spent < 60) {
    const double start = CpuMilliseconds();
    work();
    const double took = CpuMilliseconds() - start;
    best = std::min(best, took);
    spent += took;
  }
  return best;
}

// One line: ours and ATen's time, and the rate of ours.
void Report(const char* name, double flops, double bytes, const std::function<void()>& ours,
            const std::function<void()>& aten) {
  const double mine = Milliseconds(ours), theirs = Milliseconds(aten);
  std::printf("  %-28s %9.3f ms %9.3f ms  %5.2fx", name, mine, theirs, theirs / mine);
  if (flops > 0) std::printf("  %7.1f GFLOP/s", flops / mine * 1e-6);
  if (bytes > 0) std::printf("  %7.1f GB/s", bytes / mine * 1e-6);
  std::printf("\n");
}

class Bench {
 public:
  Bench(const Size& size, at::ScalarType dtype)
      : s_(size), dtype_(dtype), bytes_(dtype == at::kFloat ? 4 : 2) {}

  void Run() {
    std::printf("%s %s: rows %ld, channels %ld, features %ld, vocabulary %ld, heads %ld\n", s_.name,
                toString(dtype_), s_.rows(), s_.channels, s_.features, s_.vocabulary, s_.heads);
    std::printf("  %-28s %12s %12s\n", "", "shoal", "aten");
    Products();
    Elementwise();
    Attention();
    Loss();
    Optimizer();
  }

 private:
  Tensor Random(at::IntArrayRef sizes) const { return at::randn(sizes).to(dtype_); }
  Tensor Leaf(at::IntArrayRef sizes) const { return Random(sizes).requires_grad_(true); }
  Parameter Weight(at::IntArrayRef sizes) const {
    return {(Random(sizes) * 0.02).detach().requires_grad_(true), at::zeros(sizes, at::kFloat)};
  }
  // The same operation with autograd's own gradients.
  static Tensor Plain(const Parameter& p) { return p.value; }

  void Products() {
    const int64_t rows = s_.rows(), in = s_.channels, out = 2 * s_.features;
    Parameter weight = Weight({out, in});
    Tensor x = Leaf({rows, in}), dy = Random({rows, out});
    const double flops = 2.0 * rows * in * out;
    Report(
        "linear forward", flops, 0,
        [&] {
          at::NoGradGuard guard;
          Linear(x, weight);
        },
        [&] {
          at::NoGradGuard guard;
          at::linear(x, weight.value);
        });
    Tensor few = Random({8, in}), one = few.narrow(0, 0, 1);
    const double read = static_cast<double>(weight.value.numel()) * bytes_;
    Report(
        "linear, 1 row", 0, read,
        [&] {
          at::NoGradGuard guard;
          Linear(one, weight);
        },
        [&] {
          at::NoGradGuard guard;
          at::linear(one, weight.value);
        });
    Report(
        "linear, 8 rows", 0, read,
        [&] {
          at::NoGradGuard guard;
          Linear(few, weight);
        },
        [&] {
          at::NoGradGuard guard;
          at::linear(few, weight.value);
        });
    Report(
        "linear forward+backward", 3 * flops, 0, [&] { Linear(x, weight).backward(dy); },
        [&] { at::linear(x, weight.value).backward(dy); });
  }

  void Elementwise() {
    const int64_t rows = s_.rows(), c = s_.channels, f = s_.features, n = rows * c;
    Tensor x = Leaf({rows, c}), residual = Leaf({rows, c}), dy = Random({rows, c});
    Parameter norm = Weight({c});
    Report(
        "rms_norm f+b", 0, 5.0 * n * bytes_, [&] { RmsNorm(x, norm, 1e-5).backward(dy); },
        [&] { reference::RmsNorm(x, norm.value, 1e-5).backward(dy); });
    Report(
        "add_rms_norm f+b", 0, 8.0 * n * bytes_,
        [&] { AddRmsNorm(x, residual, norm, 1e-5).first.backward(dy); },
        [&] { reference::RmsNorm(x + residual, norm.value, 1e-5).backward(dy); });
    Parameter bias = Weight({c});
    Report(
        "layer_norm f+b", 0, 5.0 * n * bytes_, [&] { LayerNorm(x, norm, bias, 1e-5).backward(dy); },
        [&] { at::layer_norm(x, {c}, norm.value, bias.value, 1e-5).backward(dy); });
    Tensor gate_up = Leaf({rows, 2 * f}), df = Random({rows, f});
    Report(
        "swiglu f+b", 0, 8.0 * rows * f * bytes_, [&] { SwiGluPacked(gate_up).backward(df); },
        [&] { (at::silu(gate_up.narrow(1, 0, f)) * gate_up.narrow(1, f, f)).backward(df); });
    Tensor wide = Leaf({rows, f});
    Report(
        "gelu tanh f+b", 0, 5.0 * rows * f * bytes_,
        [&] { Gelu(wide, GeluKind::kTanh).backward(df); },
        [&] { at::gelu(wide, "tanh").backward(df); });
    const int64_t head_dim = c / s_.heads;
    Tensor q = Leaf({s_.batch, s_.length, s_.heads, head_dim}), dq = Random(q.sizes());
    Tensor positions = at::arange(s_.length).expand({s_.batch, s_.length}).contiguous();
    RotaryTable table = MakeRotaryTable(at::rand({head_dim / 2}), s_.length, 1, at::kFloat);
    Report(
        "rotary f+b", 0, 4.0 * n * bytes_, [&] { ApplyRotary(q, positions, table).backward(dq); },
        [&] { reference::ApplyRotary(q, positions, table).backward(dq); });
    Parameter embedding = Weight({s_.vocabulary, c});
    Tensor tokens = at::randint(s_.vocabulary, {rows}, at::kLong);
    Report(
        "embedding f+b", 0, 2.0 * n * bytes_ + 8.0 * n,
        [&] { Embedding(tokens, embedding).backward(dy); },
        [&] { at::embedding(embedding.value, tokens).backward(dy); });
  }

  void Attention() {
    const int64_t head_dim = s_.channels / s_.heads;
    Tensor q = Leaf({s_.batch, s_.length, s_.heads, head_dim}), k = Leaf(q.sizes()),
           v = Leaf(q.sizes());
    Tensor dy = Random(q.sizes());
    const double flops =
        2.0 * s_.batch * s_.heads * s_.length * s_.length * head_dim;  // The causal half
    auto aten = [&] {
      return at::scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2),
                                              v.transpose(1, 2), {}, 0, true)
          .transpose(1, 2);
    };
    Report(
        "attention forward", flops, 0,
        [&] {
          at::NoGradGuard guard;
          CausalAttention(q, k, v);
        },
        [&] {
          at::NoGradGuard guard;
          aten();
        });
    Report(
        "attention f+b", 3.5 * flops, 0, [&] { CausalAttention(q, k, v).backward(dy); },
        [&] { aten().backward(dy); });
    Decode(head_dim);
  }

  // One token of each sequence over a cache of 2048 places, in blocks of 16.
  void Decode(int64_t head_dim) {
    constexpr int64_t kPlaces = 2048, kBlock = 16;
    const int64_t half = s_.heads * kBlock * head_dim;
    const Tensor one = Random({s_.batch, s_.heads, head_dim}),
                 cache = Random({s_.batch * kPlaces / kBlock, 2 * half});
    std::vector<const void*> blocks;
    for (int64_t i = 0; i < cache.size(0); ++i) blocks.push_back(cache[i].const_data_ptr());
    std::vector<PagedSegment> segments;
    for (int64_t i = 0; i < s_.batch; ++i) {
      segments.push_back({.first_row = i,
                          .num_tokens = 1,
                          .past = kPlaces - 1,
                          .blocks = blocks.data() + i * (kPlaces / kBlock)});
    }
    const PagedLayout layout{.block_places = kBlock, .key_offset = 0, .value_offset = half};
    const Tensor keys = Random({s_.batch, s_.heads, kPlaces, head_dim}),
                 values = Random(keys.sizes());
    Report(
        "decode, 2048 keys", 0, 2.0 * static_cast<double>(keys.numel()) * bytes_,
        [&] { PagedAttention(one, one, one, segments, layout); },
        [&] {
          at::NoGradGuard guard;
          at::scaled_dot_product_attention(one.unsqueeze(2), keys, values);
        });
  }

  void Loss() {
    const int64_t rows = s_.rows();
    Tensor hidden = Leaf({rows, s_.channels}),
           targets = at::randint(s_.vocabulary, {rows}, at::kLong);
    Parameter weight = Weight({s_.vocabulary, s_.channels});
    CrossEntropyOptions options{.denominator = static_cast<double>(rows)};
    const double flops = 6.0 * rows * s_.channels * s_.vocabulary;
    auto aten = [&] {
      at::cross_entropy_loss(at::linear(hidden, weight.value).to(at::kFloat), targets).backward();
    };
    Report(
        "linear+cross entropy f+b", flops, 0,
        [&] { LinearCrossEntropy(hidden, weight, targets, options).backward(); }, aten);
    options.unit_gradient = true;
    Report(
        "  the same, unit gradient", flops, 0,
        [&] { LinearCrossEntropy(hidden, weight, targets, options).backward(); }, aten);
  }

  void Optimizer() {
    const int64_t n = 4 << 20;
    Tensor w = at::randn({n}), g = at::randn({n}).to(dtype_), m = at::zeros({n}),
           v = at::zeros({n});
    Tensor copy = dtype_ == at::kFloat ? Tensor() : at::empty({n}, dtype_);
    const double moved = n * (24.0 + bytes_ + (copy.defined() ? bytes_ : 0));
    const AdamWOptions options{.learning_rate = 1e-3, .weight_decay = 0.1};
    Report(
        "adamw, 4M weights", 0, moved, [&] { AdamWStep(w, g, m, v, copy, options); },
        [&] { reference::AdamWStep(w, g, m, v, copy, options); });
    Report(
        "sum of squares, 4M", 0, 1.0 * n * bytes_, [&] { SumOfSquares(g); },
        [&] { g.norm().item<float>(); });
  }

  Size s_;
  at::ScalarType dtype_;
  double bytes_;
};

}  // namespace
}  // namespace shoal

int main(int argc, char** argv) {
  shoal::SetNumThreads(1);
  for (at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    if (argc > 2 && std::strcmp(argv[2], dtype == at::kFloat ? "float32" : "bfloat16") != 0)
      continue;
    std::printf("matmul peak %.1f GFLOP/s\n", shoal::MeasureMatMulPeak(dtype, 1) * 1e-9);
    for (const shoal::Size& size : shoal::kSizes) {
      if (argc > 1 && std::strcmp(argv[1], size.name) != 0) continue;
      shoal::Bench(size, dtype).Run();
    }
  }
}
