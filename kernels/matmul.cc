// Legend: c (M, N) = a (M, K) b (K, N).
#include "kernels/matmul.h"

#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <optional>
#include <type_traits>
#include <unordered_map>

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dnnl.hpp>

#include "core/status.h"
#include "core/trace.h"
#include "kernels/few_rows_product.h"
#include "kernels/threads.h"

namespace shoal {
namespace {

std::atomic<MatMulBackend> float_backend{MatMulBackend::kOneDnn};
std::atomic<MatMulBackend> bfloat16_backend{MatMulBackend::kOneDnn};

bool IsOneDnnType(at::ScalarType type) { return type == at::kFloat || type == at::kBFloat16; }

dnnl::memory::data_type DnnlType(at::ScalarType type) {
  return type == at::kFloat ? dnnl::memory::data_type::f32 : dnnl::memory::data_type::bf16;
}

// What a product's primitive depends on. Operands are dense: row-major or, where transposed,
// column-major.
struct ProductKey {
  int64_t m, n, k;
  int8_t a_transposed, b_transposed;
  int8_t ab_type, c_type, bias_type;  // bias_type -1: no bias
  int8_t accumulate;
  int16_t num_threads;

  bool operator==(const ProductKey& other) const {
    return std::memcmp(this, &other, sizeof(*this)) == 0;
  }
};
static_assert(std::has_unique_object_representations_v<ProductKey>);

struct ProductKeyHash {
  size_t operator()(const ProductKey& key) const {
    uint64_t words[sizeof(ProductKey) / 8];
    std::memcpy(words, &key, sizeof(words));
    uint64_t hash = 14695981039346656037u;
    for (uint64_t word : words) hash = (hash ^ word) * 1099511628211u ^ (hash >> 29);
    return hash;
  }
};

// One compiled product with its argument slots. Belongs to one thread.
struct CompiledProduct {
  dnnl::matmul primitive;
  dnnl::memory a, b, c, bias, scratchpad;
  std::unordered_map<int, dnnl::memory> arguments;
};

// Engine, stream and compiled products of one thread: nothing here is shared, so rank threads don't
// race.
struct ThreadProducts {
  static constexpr size_t kMaxProducts = 2048;

  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  // Empty where oneDNN has no fast kernel on this machine.
  std::unordered_map<ProductKey, std::optional<CompiledProduct>, ProductKeyHash> products;
  std::vector<std::byte> scratchpad;

  std::optional<CompiledProduct>& Find(const ProductKey& key) {
    auto found = products.find(key);
    if (found != products.end()) return found->second;
    if (products.size() >= kMaxProducts) products.clear();
    return products.emplace(key, Compile(key)).first->second;
  }

  using Desc = dnnl::memory::desc;

  static Desc Matrix(int64_t rows, int64_t columns, dnnl::memory::data_type type, bool transposed) {
    return Desc({rows, columns}, type,
                transposed ? dnnl::memory::dims{1, rows} : dnnl::memory::dims{columns, 1});
  }

  std::optional<CompiledProduct> Compile(const ProductKey& key) {
    const auto ab_type = DnnlType(static_cast<at::ScalarType>(key.ab_type));
    const Desc a = Matrix(key.m, key.k, ab_type, key.a_transposed);
    const Desc b = Matrix(key.k, key.n, ab_type, key.b_transposed);
    const Desc c = Matrix(key.m, key.n, DnnlType(static_cast<at::ScalarType>(key.c_type)), false);
    Desc bias;
    if (key.bias_type >= 0)
      bias = Desc({1, key.n}, DnnlType(static_cast<at::ScalarType>(key.bias_type)), {key.n, 1});

    dnnl::primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (key.accumulate) {
      dnnl::post_ops ops;
      ops.append_sum(1.0f);
      attr.set_post_ops(ops);
    }
    const dnnl::matmul::desc desc =
        key.bias_type >= 0 ? dnnl::matmul::desc(a, b, bias, c) : dnnl::matmul::desc(a, b, c);
    dnnl::matmul::primitive_desc primitive_desc(desc, attr, engine, /*allow_empty=*/true);
    // Only the batch-reduce kernels ("brg:..."). The older "gemm:jit" initialises itself through a
    // std::call_once whose weak symbol libtorch's private oneDNN defines too: the dynamic linker
    // would run the wrong library's initialiser. Dense operands never need it on machines with
    // AVX-512.
    if (!primitive_desc || std::strncmp(primitive_desc.impl_info_str(), "brg", 3) != 0)
      return std::nullopt;

    CompiledProduct product;
    product.primitive = dnnl::matmul(primitive_desc);
    product.a = dnnl::memory(a, engine, nullptr);
    product.b = dnnl::memory(b, engine, nullptr);
    product.c = dnnl::memory(c, engine, nullptr);
    product.scratchpad = dnnl::memory(primitive_desc.scratchpad_desc(), engine, nullptr);
    product.arguments = {{DNNL_ARG_SRC, product.a},
                         {DNNL_ARG_WEIGHTS, product.b},
                         {DNNL_ARG_DST, product.c},
                         {DNNL_ARG_SCRATCHPAD, product.scratchpad}};
    if (key.bias_type >= 0) {
      product.bias = dnnl::memory(bias, engine, nullptr);
      product.arguments.emplace(DNNL_ARG_BIAS, product.bias);
    }
    return product;
  }

  std::byte* Scratchpad(size_t bytes) {
    constexpr size_t kAlignment = 64;
    if (scratchpad.size() < bytes + kAlignment) scratchpad.resize(bytes + kAlignment);
    const uintptr_t address = reinterpret_cast<uintptr_t>(scratchpad.data());
    return scratchpad.data() + (kAlignment - address % kAlignment) % kAlignment;
  }
};

// A dense operand: x itself or its transpose where that is contiguous, else a copy.
struct DenseOperand {
  explicit DenseOperand(const Tensor& x) : tensor(x) {
    if (x.is_contiguous()) return;
    transposed = x.t().is_contiguous();
    if (!transposed) tensor = x.contiguous();
  }
  Tensor tensor;
  bool transposed = false;
};

// False where oneDNN cannot serve the product. c is contiguous.
bool OneDnnMatMul(const Tensor& a_MK, const Tensor& b_KN, Tensor& c_MN,
                  const MatMulOptions& options) {
  if (a_MK.scalar_type() != b_KN.scalar_type() || !IsOneDnnType(a_MK.scalar_type()) ||
      !IsOneDnnType(c_MN.scalar_type()) || a_MK.size(1) == 0) {
    return false;
  }
  const bool has_bias = options.bias.defined();
  if (has_bias && (!IsOneDnnType(options.bias.scalar_type()) || !options.bias.is_contiguous()))
    return false;
  const DenseOperand a(a_MK), b(b_KN);

  thread_local ThreadProducts thread;
  const ProductKey key{
      a_MK.size(0),
      b_KN.size(1),
      a_MK.size(1),
      a.transposed,
      b.transposed,
      static_cast<int8_t>(a_MK.scalar_type()),
      static_cast<int8_t>(c_MN.scalar_type()),
      static_cast<int8_t>(has_bias ? static_cast<int>(options.bias.scalar_type()) : -1),
      static_cast<int8_t>(options.accumulate),
      static_cast<int16_t>(GetNumThreads())};
  std::optional<CompiledProduct>& product = thread.Find(key);
  if (!product) return false;
  product->a.set_data_handle(a.tensor.data_ptr());
  product->b.set_data_handle(b.tensor.data_ptr());
  product->c.set_data_handle(c_MN.data_ptr());
  if (has_bias) product->bias.set_data_handle(options.bias.data_ptr());
  product->scratchpad.set_data_handle(thread.Scratchpad(product->scratchpad.get_desc().get_size()));
  product->primitive.execute(thread.stream, product->arguments);
  thread.stream.wait();
  return true;
}

void AtenMatMul(const Tensor& a_MK, const Tensor& b_KN, Tensor& c_MN,
                const MatMulOptions& options) {
  Tensor product = at::mm(a_MK, b_KN.to(a_MK.scalar_type()));
  if (options.bias.defined()) product.add_(options.bias);
  if (options.accumulate) {
    c_MN.add_(product);
  } else {
    c_MN.copy_(product);
  }
}

// Few processors multiply float16, and oneDNN's kernels for the others are its slow ones.
void WidenedMatMul(const Tensor& a_MK, const Tensor& b_KN, Tensor& c_MN,
                   const MatMulOptions& options) {
  const auto wide = [](const Tensor& x) { return x.defined() ? x.to(at::kFloat) : Tensor(); };
  const MatMulOptions wide_options{.accumulate = false, .bias = wide(options.bias)};
  if (c_MN.scalar_type() == at::kFloat) {
    MatMul(wide(a_MK), wide(b_KN), c_MN, {options.accumulate, wide_options.bias});
    return;
  }
  Tensor product = at::empty(c_MN.sizes(), at::kFloat);
  MatMul(wide(a_MK), wide(b_KN), product, wide_options);
  options.accumulate ? c_MN.add_(product) : c_MN.copy_(product);
}

// cuBLAS may add up parts of half-precision sums in half precision unless it is told not to.
void KeepCublasSumsInFloat() {
  static const bool once = [] {
    at::globalContext().setAllowBF16ReductionCuBLAS(false);
    at::globalContext().setAllowFP16ReductionCuBLAS(false);
    return true;
  }();
  static_cast<void>(once);
}

// By the device's own library, without a copy of c where the types allow. c is contiguous.
void DeviceMatMul(const Tensor& a_MK, const Tensor& b_KN, Tensor& c_MN,
                  const MatMulOptions& options) {
  const at::ScalarType type = a_MK.scalar_type();
  const Tensor& bias = options.bias;
  const bool half_to_float =
      (type == at::kBFloat16 || type == at::kHalf) && c_MN.scalar_type() == at::kFloat;
  if (b_KN.scalar_type() != type || (c_MN.scalar_type() != type && !half_to_float)) {
    AtenMatMul(a_MK, b_KN, c_MN, options);
  } else if (half_to_float && !c_MN.is_cuda()) {
    DeviceMatMul(a_MK.to(at::kFloat), b_KN.to(at::kFloat), c_MN,
                 {options.accumulate, bias.defined() ? bias.to(at::kFloat) : Tensor()});
  } else if (half_to_float) {
    KeepCublasSumsInFloat();
    if (options.accumulate)
      at::addmm_out(c_MN, c_MN, a_MK, b_KN, at::kFloat);
    else
      at::mm_out(c_MN, a_MK, b_KN, at::kFloat);
    if (bias.defined()) c_MN.add_(bias);
  } else {
    if (c_MN.is_cuda()) KeepCublasSumsInFloat();
    if (options.accumulate)
      at::addmm_out(c_MN, c_MN, a_MK, b_KN);
    else if (bias.defined() && bias.scalar_type() == type)
      at::addmm_out(c_MN, bias, a_MK, b_KN);
    else
      at::mm_out(c_MN, a_MK, b_KN);
    if (bias.defined() && bias.scalar_type() != type) c_MN.add_(bias);
  }
}

double Seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The smallest of a few timings after one to warm up, within a budget.
double BestSeconds(const std::function<void()>& work, double budget_seconds) {
  work();
  double best = Seconds(work);
  for (double spent = best; spent < budget_seconds; spent += best)
    best = std::min(best, Seconds(work));
  return best;
}

class ScopedNumThreads {
 public:
  explicit ScopedNumThreads(int num_threads) : before_(GetNumThreads()) {
    SetNumThreads(num_threads);
  }
  ~ScopedNumThreads() { SetNumThreads(before_); }

 private:
  int before_;
};

}  // namespace

void MatMul(const Tensor& a_MK, const Tensor& b_KN, Tensor& c_MN, const MatMulOptions& options) {
  SHOAL_CHECK(a_MK.dim() == 2 && b_KN.dim() == 2 && c_MN.dim() == 2 &&
              a_MK.size(1) == b_KN.size(0) && c_MN.size(0) == a_MK.size(0) &&
              c_MN.size(1) == b_KN.size(1))
      << "MatMul: a " << a_MK.sizes() << ", b " << b_KN.sizes() << ", c " << c_MN.sizes();
  SHOAL_CHECK(!options.accumulate || !options.bias.defined())
      << "MatMul: a bias cannot be accumulated";
  if (c_MN.numel() == 0) return;
  at::NoGradGuard no_grad;
  if (!c_MN.is_contiguous() && c_MN.t().is_contiguous() && !options.bias.defined()) {
    Tensor c_NM = c_MN.t();
    return MatMul(b_KN.t(), a_MK.t(), c_NM, options);
  }
  if (!c_MN.is_contiguous()) {
    Tensor dense = options.accumulate ? c_MN.contiguous() : at::empty(c_MN.sizes(), c_MN.options());
    MatMul(a_MK, b_KN, dense, options);
    c_MN.copy_(dense);
    return;
  }
  const TraceSpan span(
      TraceKind::kMatMul, "matmul",
      {.flops = 2.0 * static_cast<double>(c_MN.numel()) * static_cast<double>(a_MK.size(1))});
  if (!a_MK.is_cpu()) return DeviceMatMul(a_MK, b_KN, c_MN, options);
  if (a_MK.scalar_type() == at::kHalf) {
    if (!FewRowsProduct(a_MK, b_KN, c_MN, options)) WidenedMatMul(a_MK, b_KN, c_MN, options);
    return;
  }
  const bool use_onednn = GetMatMulBackend(a_MK.scalar_type()) == MatMulBackend::kOneDnn;
  if (use_onednn && FewRowsProduct(a_MK, b_KN, c_MN, options)) return;
  if (use_onednn && OneDnnMatMul(a_MK, b_KN, c_MN, options)) return;
  AtenMatMul(a_MK, b_KN, c_MN, options);
}

void SetMatMulBackend(at::ScalarType dtype, MatMulBackend backend) {
  SHOAL_CHECK(IsOneDnnType(dtype)) << "SetMatMulBackend: no choice for " << toString(dtype);
  (dtype == at::kFloat ? float_backend : bfloat16_backend) = backend;
}

MatMulBackend GetMatMulBackend(at::ScalarType dtype) {
  if (!IsOneDnnType(dtype)) return MatMulBackend::kAten;
  return dtype == at::kFloat ? float_backend : bfloat16_backend;
}

MatMulBackend MeasureMatMulBackend(at::ScalarType dtype) {
  if (!IsOneDnnType(dtype)) return MatMulBackend::kAten;
  Tensor a = at::ones({512, 512}, dtype), b = at::ones({512, 512}, dtype),
         c = at::empty({512, 512}, dtype);
  if (!OneDnnMatMul(a, b, c, {})) return MatMulBackend::kAten;
  constexpr double kBudget = 4e-3;
  const double onednn = BestSeconds([&] { OneDnnMatMul(a, b, c, {}); }, kBudget);
  const double aten = BestSeconds([&] { AtenMatMul(a, b, c, {}); }, kBudget);
  return onednn <= 1.2 * aten ? MatMulBackend::kOneDnn : MatMulBackend::kAten;
}

double MeasureMatMulPeak(at::ScalarType dtype, int num_threads) {
  const ScopedNumThreads threads(num_threads);
  double peak = 0;
  for (auto [m, k, n] :
       {std::array<int64_t, 3>{512, 512, 512}, {1024, 512, 1408}, {1024, 1024, 1024}}) {
    Tensor a = at::ones({m, k}, dtype), b = at::ones({n, k}, dtype), c = at::empty({m, n}, dtype);
    const double seconds = BestSeconds([&] { MatMul(a, b.t(), c); }, 0.08);
    peak = std::max(peak, 2.0 * m * k * n / seconds);
  }
  return peak;
}

double MeasureMatMulPeak(at::ScalarType dtype, at::Device device) {
  constexpr int64_t kSmallest = 512, kLargest = 8192;
  constexpr double kLongEnough = 2e-3, kBudget = 0.05;
  const auto options = at::TensorOptions(device);
  const c10::impl::VirtualGuardImpl guard(device.type());
  double peak = 0;
  for (int64_t n = kSmallest; n <= kLargest; n *= 2) {
    // No constants: what a processor multiplies decides its power, and so its clock.
    const Tensor a = at::arange(n * n, options.dtype(at::kFloat)).sin_().to(dtype).view({n, n});
    Tensor c = at::empty_like(a);
    const double seconds = BestSeconds(
        [&] {
          MatMul(a, a.t(), c);
          guard.synchronizeDevice(c.device().index());
        },
        kBudget);
    peak = std::max(peak, 2.0 * static_cast<double>(n * n * n) / seconds);
    if (seconds > kLongEnough) break;
  }
  return peak;
}

MemoryBandwidth MeasureMemoryBandwidth(int num_threads) {
  const ScopedNumThreads threads(num_threads);
  constexpr int64_t kBytes = int64_t{1} << 27;
  constexpr int64_t kWords = kBytes / 8;
  Tensor from = at::ones({kWords}, at::kLong), to = at::zeros({kWords}, at::kLong);
  const int64_t* source = from.const_data_ptr<int64_t>();
  int64_t* target = to.mutable_data_ptr<int64_t>();
  std::atomic<int64_t> sum{0};  // Keeps the reads alive
  const double read = BestSeconds(
      [&] {
        ParallelFor(kWords, 1 << 16, [&](int64_t begin, int64_t end) {
          int64_t parts[32] = {};
          for (int64_t i = begin; i + 32 <= end; i += 32) {
            for (int64_t j = 0; j < 32; ++j) parts[j] += source[i + j];
          }
          for (int64_t part : parts) sum += part;
        });
      },
      0.1);
  const double copy = BestSeconds(
      [&] {
        ParallelFor(kWords, 1 << 16, [&](int64_t begin, int64_t end) {
          std::memcpy(target + begin, source + begin, (end - begin) * sizeof(int64_t));
        });
      },
      0.1);
  return {kBytes / read, kBytes / copy};
}

}  // namespace shoal
