#include "parallel/comm/self_check.h"

#include <algorithm>
#include <chrono>
#include <functional>

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ne.h>
#include <ATen/ops/remainder.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "absl/strings/str_cat.h"
#include "core/dtype.h"

namespace shoal {
namespace {

constexpr int kTimedCalls = 3;

// Small whole numbers, so that sums over ranks are exact in every dtype. Rank r's element i.
at::Tensor Pattern(int64_t numel, int rank, at::ScalarType dtype) {
  return at::remainder(at::arange(numel, at::kLong) + rank, 7).to(dtype);
}

at::Tensor PatternSum(int64_t numel, int size, at::ScalarType dtype) {
  at::Tensor sum = Pattern(numel, 0, at::kLong);
  for (int rank = 1; rank < size; ++rank) sum += Pattern(numel, rank, at::kLong);
  return sum.to(dtype);
}

std::string FirstDifference(const at::Tensor& got, const at::Tensor& want) {
  if (got.equal(want)) return "";
  const at::Tensor places = at::ne(got, want).nonzero();
  if (places.numel() == 0) return "sizes differ";
  const int64_t place = places.flatten()[0].item<int64_t>();
  return absl::StrCat("element ", place, ": got ", got[place].item<double>(), ", want ",
                      want[place].item<double>());
}

// One collective on fixed buffers: `run` may be called again and again; `result` and `want` hold
// for the first call.
struct Trial {
  std::string name;
  std::function<void()> run;
  at::Tensor result;
  at::Tensor want;
  int64_t bytes;
};

class Trials {
 public:
  Trials(Communicator& comm, int64_t bytes) : comm_(comm), bytes_(bytes) {}

  Trial AllReduce(at::ScalarType dtype) {
    const int64_t numel = WholeNumel(dtype);
    at::Tensor x = Registered(Pattern(numel, comm_.rank(), dtype));
    return {Name("AllReduce", dtype), [=, this]() mutable { comm_.AllReduce(x); }, x,
            PatternSum(numel, comm_.size(), dtype), static_cast<int64_t>(x.nbytes())};
  }
  Trial ReduceScatter(at::ScalarType dtype) {
    const int64_t numel = WholeNumel(dtype);
    const int64_t slice = numel / comm_.size();
    at::Tensor in = Registered(Pattern(numel, comm_.rank(), dtype));
    at::Tensor out = Registered(at::full({slice}, -1, dtype));
    return {Name("ReduceScatter", dtype), [=, this]() mutable { comm_.ReduceScatter(out, in); },
            out, PatternSum(numel, comm_.size(), dtype).narrow(0, comm_.rank() * slice, slice),
            static_cast<int64_t>(in.nbytes())};
  }
  Trial AllGather(at::ScalarType dtype) {
    const int64_t numel = WholeNumel(dtype);
    const int64_t slice = numel / comm_.size();
    at::Tensor want = Pattern(numel, 0, dtype);
    at::Tensor in = Registered(want.narrow(0, comm_.rank() * slice, slice));
    at::Tensor out = Registered(at::full({numel}, -1, dtype));
    return {Name("AllGather", dtype), [=, this]() mutable { comm_.AllGather(out, in); }, out, want,
            static_cast<int64_t>(out.nbytes())};
  }
  Trial Broadcast() {
    const int64_t numel = WholeNumel(at::kFloat);
    const int root = comm_.size() - 1;
    at::Tensor x = Registered(Pattern(numel, comm_.rank(), at::kFloat));
    return {Name("Broadcast", at::kFloat), [=, this]() mutable { comm_.Broadcast(x, root); }, x,
            Pattern(numel, root, at::kFloat), static_cast<int64_t>(x.nbytes())};
  }
  Trial AllToAll() {
    const int64_t numel = WholeNumel(at::kFloat);
    const int64_t slice = numel / comm_.size();
    at::Tensor in = Registered(Pattern(numel, comm_.rank(), at::kFloat));
    at::Tensor out = Registered(at::full({numel}, -1, at::kFloat));
    at::Tensor want = at::empty({numel}, at::kFloat);
    for (int peer = 0; peer < comm_.size(); ++peer) {
      want.narrow(0, peer * slice, slice)
          .copy_(Pattern(numel, peer, at::kFloat).narrow(0, comm_.rank() * slice, slice));
    }
    return {Name("AllToAll", at::kFloat), [=, this]() mutable { comm_.AllToAll(out, in); }, out,
            want, static_cast<int64_t>(in.nbytes())};
  }
  // Even ranks send to the next one; the last of an odd number rests.
  Trial SendRecv() {
    const int64_t numel = WholeNumel(at::kFloat);
    const int rank = comm_.rank();
    const bool receives = rank % 2 == 1;
    const bool sends = !receives && rank + 1 < comm_.size();
    at::Tensor x = Registered(Pattern(numel, rank, at::kFloat));
    auto run = [=, this]() mutable {
      if (receives) comm_.Recv(x, rank - 1);
      if (sends) comm_.Send(x, rank + 1);
    };
    return {Name("Send and Recv", at::kFloat), run, x,
            Pattern(numel, receives ? rank - 1 : rank, at::kFloat),
            static_cast<int64_t>(x.nbytes())};
  }

 private:
  int64_t WholeNumel(at::ScalarType dtype) const {
    const int64_t slice = bytes_ / ElementBytes(dtype) / comm_.size();
    return std::max<int64_t>(slice, 1) * comm_.size();
  }
  at::Tensor Registered(const at::Tensor& values) {
    at::Tensor memory = comm_.AllocateRegistered(values.numel(), values.scalar_type());
    return memory.copy_(values);
  }
  static std::string Name(const char* call, at::ScalarType dtype) {
    return absl::StrCat(call, "(", DtypeName(dtype), ")");
  }

  Communicator& comm_;
  int64_t bytes_;
};

double Seconds(at::Device device, const std::function<void()>& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  if (!device.is_cpu()) {
    const c10::impl::VirtualGuardImpl of_device(device.type());
    of_device.synchronizeStream(of_device.getStream(device));
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

CollectiveCheck Judge(Communicator& comm, const Trial& trial) {
  trial.run();
  const std::string mine = FirstDifference(trial.result.cpu(), trial.want);
  CollectiveCheck check{.name = trial.name, .bytes = trial.bytes};
  const std::vector<std::string> problems = AllGatherStrings(comm, mine);
  for (size_t rank = 0; rank < problems.size() && check.problem.empty(); ++rank) {
    if (!problems[rank].empty()) check.problem = absl::StrCat("rank ", rank, ": ", problems[rank]);
  }
  check.correct = check.problem.empty();
  double best = 1e30;
  for (int call = 0; call < kTimedCalls; ++call) {
    comm.Barrier();
    best = std::min(best, Seconds(comm.device(), trial.run));
  }
  at::Tensor slowest = at::full({1}, best, at::kDouble);
  comm.AllReduce(slowest, ReduceOp::kMax);
  check.seconds = slowest.item<double>();
  check.bytes_per_second = static_cast<double>(check.bytes) / check.seconds;
  return check;
}

}  // namespace

std::vector<CollectiveCheck> CheckCollectives(Communicator& comm, int64_t bytes) {
  Trials trials(comm, bytes);
  std::vector<CollectiveCheck> checks;
  for (at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    checks.push_back(Judge(comm, trials.AllReduce(dtype)));
    checks.push_back(Judge(comm, trials.ReduceScatter(dtype)));
    checks.push_back(Judge(comm, trials.AllGather(dtype)));
  }
  checks.push_back(Judge(comm, trials.Broadcast()));
  checks.push_back(Judge(comm, trials.AllToAll()));
  checks.push_back(Judge(comm, trials.SendRecv()));
  return checks;
}

}  // namespace shoal
