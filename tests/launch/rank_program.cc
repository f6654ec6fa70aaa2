// A program that starts and joins ranks as `shoal run` does, and fails in the way that its argument
// asks.
//   rank_program RANKS BEHAVIOUR
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>

#include <unistd.h>

#include <ATen/Parallel.h>
#include <ATen/ops/full.h>

#include "launch/launcher.h"
#include "launch/ranks.h"

namespace shoal {
namespace {

absl::Status Work(Communicator& comm, const std::string& behaviour) {
  at::Tensor x = comm.AllocateRegistered(1 << 20, at::kFloat).fill_(1);
  comm.AllReduce(x);
  const bool last = comm.rank() == comm.size() - 1;
  if (behaviour == "fail-last" && last) return absl::DataLossError("shard 7 is torn");
  if (behaviour == "fail-all") return absl::InvalidArgumentError("no such thing");
  if (behaviour == "kill-last" && last) std::raise(SIGKILL);
  if (behaviour == "kill-mpirun" && last) kill(getppid(), SIGKILL);
  if (behaviour == "exit-last" && last) std::_Exit(9);
  if (behaviour != "succeed") {
    for (int i = 0; i < 100'000; ++i)
      comm.AllReduce(x);  // Until the failure of the others ends this rank
  }
  if (comm.rank() == 0) {
    std::printf("%d ranks, %s, sum %g, %d threads\n", comm.size(), comm.name().c_str(),
                x[7].item<float>(), at::get_num_threads());
  }
  return absl::OkStatus();
}

int Run(int argc, char** argv) {
  const int ranks = std::atoi(argv[1]);
  const auto environment = ReadRankEnvironment(std::getenv, ranks);
  if (!environment.ok()) {
    std::fprintf(stderr, "shoal: %s\n", std::string(environment.status().message()).c_str());
    return 64;
  }
  if (MustLaunch(*environment, ranks)) return LaunchRanks(argc, argv, ranks);
  auto comm = JoinRanks(*environment, {});
  if (!comm.ok()) {
    std::fprintf(stderr, "shoal: %s\n", std::string(comm.status().message()).c_str());
    return 74;
  }
  const absl::Status status = Work(**comm, argv[2]);
  EndJobOnError(**comm, status, 65);
  return status.ok() ? 0 : 65;
}

}  // namespace
}  // namespace shoal

int main(int argc, char** argv) { return argc == 3 ? shoal::Run(argc, argv) : 64; }
