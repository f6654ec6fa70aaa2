// Times the communicator's collectives on registered float32 memory, as gloo is timed in
// bench/peers: the median of calls that begin at a barrier with freshly written tensors.
//
//   ninja comm_bench && mpirun -np 2 comm_bench [shm|mpi]
//
// One JSON object on stdout: {"allreduce_16MB": {"ms": 2.1, "gb_per_s": 7.6}, ...}; bytes of the
// whole tensor over the time on rank 0.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include <ATen/ops/empty.h>

#include "parallel/comm/mpi_communicator.h"

namespace shoal {
namespace {

double MedianSeconds(Communicator& comm, at::Tensor& whole, at::Tensor& part, int calls,
                     const std::function<void()>& call) {
  constexpr int kWarmUp = 3;
  std::vector<double> seconds;
  for (int i = 0; i < kWarmUp + calls; ++i) {
    whole.fill_(1);
    part.fill_(1);
    comm.Barrier();
    const auto start = std::chrono::steady_clock::now();
    call();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    if (i >= kWarmUp) seconds.push_back(taken.count());
  }
  std::nth_element(seconds.begin(), seconds.begin() + calls / 2, seconds.end());
  return seconds[calls / 2];
}

void Bench(Communicator& comm) {
  std::string rows;
  for (double megabytes : {0.0625, 1.0, 16.0, 64.0, 128.0}) {
    const int64_t part_numel = static_cast<int64_t>(megabytes * 1e6 / 4) / comm.size();
    at::Tensor whole = comm.AllocateRegistered(part_numel * comm.size(), at::kFloat);
    at::Tensor part = comm.AllocateRegistered(part_numel, at::kFloat);
    const std::map<std::string, std::function<void()>> calls = {
        {"allreduce", [&] { comm.AllReduce(whole); }},
        {"allgather", [&] { comm.AllGather(whole, part); }},
        {"reducescatter", [&] { comm.ReduceScatter(part, whole); }},
    };
    for (const auto& [name, call] : calls) {
      const double seconds = MedianSeconds(comm, whole, part, megabytes <= 1 ? 20 : 7, call);
      char row[200];
      std::snprintf(row, sizeof(row), "%s\"%s_%gMB\": {\"ms\": %.3f, \"gb_per_s\": %.3f}",
                    rows.empty() ? "" : ",\n ", name.c_str(), megabytes, seconds * 1e3,
                    whole.nbytes() / seconds / 1e9);
      rows += row;
    }
  }
  if (comm.rank() == 0) std::printf("{%s}\n", rows.c_str());
}

int Run(const std::string& transport) {
  auto runtime = MpiRuntime::Start();
  if (!runtime.ok()) return 1;
  CommOptions options;
  options.transport = transport == "mpi" ? CommTransport::kMpi : CommTransport::kAuto;
  auto comm = MakeMpiCommunicator(*std::move(runtime), options);
  if (!comm.ok()) return 1;
  Bench(**comm);
  return 0;
}

}  // namespace
}  // namespace shoal

int main(int argc, char** argv) { return shoal::Run(argc > 1 ? argv[1] : "shm"); }
