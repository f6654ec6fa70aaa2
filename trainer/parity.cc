#include "trainer/parity.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <map>
#include <tuple>

#include <ATen/ops/empty.h>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "models/safetensors.h"
#include "parallel/comm/local_communicator.h"
#include "trainer/parity_record.h"

namespace shoal {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kSmallTensor = 1e-2;                // See Difference::relative
constexpr int64_t kPartElements = int64_t{1} << 20;  // Of a tensor, held of each run at a time

bool Equal(double a, double b) {
  return std::bit_cast<uint64_t>(a) == std::bit_cast<uint64_t>(b) ||
         (std::isnan(a) && std::isnan(b));
}

double Distance(double a, double b) {
  const double distance = std::abs(a - b);
  return std::isfinite(distance) ? distance : kInfinity;
}

// distance / scale, where both may be 0 or infinite.
double Relative(double distance, double scale) {
  return distance == 0 || distance == kInfinity ? distance : distance / scale;
}

Difference CompareNumber(const std::string& kind, double a, double b) {
  Difference result;
  result.kind = kind;
  result.a = a;
  result.b = b;
  result.same_bits = Equal(a, b);
  if (!result.same_bits)
    result.relative = Relative(Distance(a, b), std::max(std::abs(a), std::abs(b)));
  return result;
}

using TensorIndex = std::map<std::string, const Manifest::Tensor*>;

TensorIndex IndexOf(const Manifest& manifest) {
  TensorIndex index;
  for (const Manifest::Tensor& tensor : manifest.tensors()) index[tensor.name()] = &tensor;
  return index;
}

std::vector<int64_t> SizesOf(const Manifest::Tensor& tensor) {
  return {tensor.shape().begin(), tensor.shape().end()};
}

// A tensor of both runs.
struct Pair {
  const Manifest::Tensor* a = nullptr;  // Null: not there
  const Manifest::Tensor* b = nullptr;
  bool transposed = false;
  double distance = 0;  // Largest of two elements
  double largest = 0;   // Finite |element| of both
  Difference difference;
};

// All tensors of both runs in the order of StepComparison.
std::vector<Pair> PairUp(const TensorIndex& a, const TensorIndex& b, const StepRecord& record) {
  std::map<std::string, int> positions;
  for (const StepRecord::Weight& weight : record.weights)
    positions.try_emplace(weight.name, static_cast<int>(positions.size()));
  std::map<std::string, Pair> by_name;
  for (const auto& [name, tensor] : a) by_name[name].a = tensor;
  for (const auto& [name, tensor] : b) by_name[name].b = tensor;

  using Key = std::tuple<int, std::string, int, std::string>;
  std::map<Key, Pair> ordered;
  for (auto& [full_name, pair] : by_name) {
    const std::vector<std::string> parts = absl::StrSplit(full_name, absl::MaxSplits('/', 1));
    const std::string &kind = parts.front(), &name = parts.back();
    const auto found = positions.find(name);
    const int position = found == positions.end() ? -1 : found->second;
    pair.transposed = position >= 0 && record.weights[position].transposed;
    pair.difference.kind = kind;
    pair.difference.name = name;
    Key key{kind == "weights" ? 1 : 2, kind, position, name};
    if (kind == kGradientKind) key = {0, kind, -position, name};
    ordered[key] = std::move(pair);
  }
  std::vector<Pair> pairs;
  for (auto& entry : ordered) pairs.push_back(std::move(entry.second));
  return pairs;
}

// Indices of a flat element of a tensor as it lies in memory, dimensions as in files.
std::vector<int64_t> ElementAt(int64_t flat, const std::vector<int64_t>& sizes, bool transposed) {
  std::vector<int64_t> element(sizes.size());
  for (size_t dim = sizes.size(); dim-- > 0;) {
    element[dim] = flat % sizes[dim];
    flat /= sizes[dim];
  }
  if (transposed && sizes.size() > 1) std::swap(element[0], element[1]);
  return element;
}

class PairComparison {
 public:
  PairComparison(FileSystem& files, const std::string& folder_a, const std::string& folder_b,
                 const std::function<bool()>& cancelled)
      : files_(files), folder_a_(folder_a), folder_b_(folder_b), cancelled_(cancelled) {}

  // Fills in all but difference.relative, which depends on the others of the kind.
  absl::Status Compare(Pair& pair) {
    std::string& mismatch = pair.difference.mismatch;
    if (pair.a == nullptr || pair.b == nullptr) {
      mismatch = pair.a == nullptr ? "only in B" : "only in A";
    } else if (const auto a = SizesOf(*pair.a), b = SizesOf(*pair.b); a != b) {
      mismatch = absl::StrFormat("shape (%s) in A, (%s) in B", absl::StrJoin(a, ", "),
                                 absl::StrJoin(b, ", "));
    }
    if (mismatch.empty()) return CompareElements(pair);
    pair.difference.same_bits = false;
    pair.distance = kInfinity;
    return absl::OkStatus();
  }

 private:
  absl::Status CompareElements(Pair& pair) {
    const std::vector<int64_t> sizes = SizesOf(*pair.a);
    int64_t numel = 1;
    for (const int64_t size : sizes) numel *= size;
    int64_t worst = -1;
    for (int64_t begin = 0; begin < numel; begin += kPartElements) {
      if (cancelled_ && cancelled_()) return absl::CancelledError("interrupted");
      const int64_t count = std::min(kPartElements, numel - begin);
      SHOAL_ASSIGN_OR_RETURN(const Tensor part_a, Read(folder_a_, *pair.a, begin, count));
      SHOAL_ASSIGN_OR_RETURN(const Tensor part_b, Read(folder_b_, *pair.b, begin, count));
      const double* all_a = part_a.const_data_ptr<double>();
      const double* all_b = part_b.const_data_ptr<double>();
      for (int64_t i = 0; i < count; ++i) {
        const double a = all_a[i], b = all_b[i];
        if (std::isfinite(a)) pair.largest = std::max(pair.largest, std::abs(a));
        if (std::isfinite(b)) pair.largest = std::max(pair.largest, std::abs(b));
        if (Equal(a, b)) continue;
        const double distance = Distance(a, b);
        if (worst >= 0 && distance <= pair.distance) continue;
        worst = begin + i;
        pair.distance = distance;
        pair.difference.a = a;
        pair.difference.b = b;
      }
    }
    if (worst < 0) return absl::OkStatus();
    pair.difference.same_bits = false;
    pair.difference.element = ElementAt(worst, sizes, pair.transposed);
    return absl::OkStatus();
  }

  absl::StatusOr<Tensor> Read(const std::string& folder, const Manifest::Tensor& tensor,
                              int64_t begin, int64_t count) {
    const Tensor data = at::empty({count}, *DtypeOfSafetensors(tensor.dtype()));
    const StatePiece piece{
        .name = tensor.name(), .shape = SizesOf(tensor), .begin = begin, .data = data};
    SHOAL_RETURN_IF_ERROR(
        LoadCheckpoint(files_, *alone_, folder, {piece}, UnreadTensors::kAllow).status());
    return data.to(at::kDouble);
  }

  FileSystem& files_;
  const std::string& folder_a_;
  const std::string& folder_b_;
  const std::function<bool()>& cancelled_;
  const std::unique_ptr<Communicator> alone_ = MakeSingleRankCommunicator();
};

}  // namespace

absl::StatusOr<std::vector<int64_t>> RecordedSteps(FileSystem& files, const std::string& folder) {
  SHOAL_ASSIGN_OR_RETURN(const std::vector<std::string> names, files.List(folder));
  std::vector<int64_t> steps;
  for (const std::string& name : names) {
    if (const auto step = StepOfName(name)) steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

absl::StatusOr<StepComparison> CompareStep(FileSystem& files, const std::string& a,
                                           const std::string& b, int64_t step,
                                           const std::function<bool()>& cancelled) {
  const std::string name = absl::StrCat("step-", step);
  const std::string folder_a = JoinPath(a, name), folder_b = JoinPath(b, name);
  SHOAL_ASSIGN_OR_RETURN(const Manifest manifest_a, ReadManifest(files, folder_a));
  SHOAL_ASSIGN_OR_RETURN(const Manifest manifest_b, ReadManifest(files, folder_b));
  const StepRecord record_a = FromTrainerState(manifest_a.state());
  const StepRecord record_b = FromTrainerState(manifest_b.state());

  StepComparison comparison{.step = step, .is_start = !record_a.loss, .differences = {}};
  if (record_a.loss && record_b.loss)
    comparison.differences.push_back(CompareNumber("loss", *record_a.loss, *record_b.loss));
  if (record_a.grad_norm && record_b.grad_norm) {
    comparison.differences.push_back(
        CompareNumber("gradient norm", *record_a.grad_norm, *record_b.grad_norm));
  }
  std::vector<Pair> pairs = PairUp(IndexOf(manifest_a), IndexOf(manifest_b), record_a);
  PairComparison compare(files, folder_a, folder_b, cancelled);
  std::map<std::string, double> largest;  // Of a kind
  for (Pair& pair : pairs) {
    SHOAL_RETURN_IF_ERROR(compare.Compare(pair));
    double& of_kind = largest[pair.difference.kind];
    of_kind = std::max(of_kind, pair.largest);
  }
  for (Pair& pair : pairs) {
    const double scale = std::max(pair.largest, kSmallTensor * largest[pair.difference.kind]);
    pair.difference.relative = Relative(pair.distance, scale);
    comparison.differences.push_back(std::move(pair.difference));
  }
  return comparison;
}

}  // namespace shoal
