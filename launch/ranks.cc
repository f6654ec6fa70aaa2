#include "launch/ranks.h"

#include <sched.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <optional>
#include <thread>

#include <ATen/Parallel.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "core/status.h"
#include "parallel/comm/local_communicator.h"
#include "parallel/comm/mpi_communicator.h"

namespace shoal {
namespace {

constexpr auto kHoldBack = std::chrono::milliseconds(150);
constexpr auto kHoldBackPerRank = std::chrono::milliseconds(100);

using Variable = std::function<const char*(const char*)>;

std::optional<int> Number(const Variable& variable, const char* name) {
  const char* text = variable(name);
  int value = 0;
  if (text == nullptr || !absl::SimpleAtoi(text, &value) || value < 0) return std::nullopt;
  return value;
}

// How many ranks of this job are on this host, as far as the launcher says.
int RanksOnHost(const RankEnvironment& environment) {
  return Number(std::getenv, "OMPI_COMM_WORLD_LOCAL_SIZE").value_or(environment.size);
}

void HoldBack(int rank) {
  if (rank > 0) std::this_thread::sleep_for(kHoldBack + kHoldBackPerRank * std::min(rank, 10));
}

absl::StatusOr<std::unique_ptr<Communicator>> JoinHosts(const RankEnvironment& environment,
                                                        const CommOptions& options) {
  if (environment.size == 1) return MakeSingleRankCommunicator();
  auto runtime = MpiRuntime::Start();
  if (!runtime.ok()) return runtime.status();
  if ((*runtime)->size() != environment.size) {
    return absl::FailedPreconditionError(absl::StrCat(
        environment.launcher, " started ", environment.size, " ranks, but MPI found ",
        (*runtime)->size(), ": the launcher belongs to another MPI than ", (*runtime)->library(),
        environment.launcher == "srun" ? "; try srun --mpi=pmix" : "; use that MPI's mpirun"));
  }
  return MakeMpiCommunicator(*std::move(runtime), options);
}

}  // namespace

absl::StatusOr<RankEnvironment> ReadRankEnvironment(const Variable& variable, int requested_ranks) {
  RankEnvironment found;
  const auto slurm_rank = Number(variable, "SLURM_PROCID");
  auto slurm_size = Number(variable, "SLURM_STEP_NUM_TASKS");
  if (!slurm_size) slurm_size = Number(variable, "SLURM_NTASKS");
  const bool slurm_ranks = slurm_rank && slurm_size.value_or(1) > 1;
  const auto open_mpi_size = Number(variable, "OMPI_COMM_WORLD_SIZE");
  auto pmi_rank = Number(variable, "PMIX_RANK");
  if (!pmi_rank) pmi_rank = Number(variable, "PMI_RANK");
  if (open_mpi_size) {
    found = {"mpirun", Number(variable, "OMPI_COMM_WORLD_RANK").value_or(0), *open_mpi_size};
  } else if (pmi_rank && slurm_ranks) {
    found = {"srun", *pmi_rank, *slurm_size};
  } else if (pmi_rank && Number(variable, "PMI_SIZE")) {
    found = {"mpirun", *pmi_rank, *Number(variable, "PMI_SIZE")};
  } else if (slurm_ranks && (requested_ranks == 0 || variable("SLURM_STEP_ID") != nullptr)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "Slurm started this process as rank ", *slurm_rank, " of ", *slurm_size,
        " (SLURM_PROCID, SLURM_NTASKS) but gave MPI no way to reach the others: start it with srun "
        "--mpi=pmix, or with mpirun -np ",
        *slurm_size));
  }
  if (found.started() && requested_ranks > 0 && requested_ranks != found.size) {
    return absl::InvalidArgumentError(
        absl::StrCat("-n ", requested_ranks, ", but ", found.launcher, " started ", found.size,
                     found.size == 1 ? " rank" : " ranks", ": leave -n out or make them equal"));
  }
  return found;
}

bool MustLaunch(const RankEnvironment& environment, int requested_ranks) {
  return requested_ranks > 1 && !environment.started();
}

int ThreadsPerRank(int ranks) {
  const int online = std::max(1, static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));
  cpu_set_t allowed;
  const int mine =
      sched_getaffinity(0, sizeof(allowed), &allowed) == 0 ? CPU_COUNT(&allowed) : online;
  // Bound to some cores: all of those are this rank's.
  return mine < online ? std::max(1, std::min(mine, online / ranks)) : std::max(1, online / ranks);
}

absl::StatusOr<std::unique_ptr<Communicator>> JoinRanks(const RankEnvironment& environment,
                                                        const CommOptions& options,
                                                        DeviceRequest device) {
  if (environment.started()) prctl(PR_SET_PDEATHSIG, SIGKILL);
  SHOAL_RETURN_IF_ERROR(HeldBack(environment, CheckBuiltFor(device)));
  if (std::getenv("OMP_NUM_THREADS") == nullptr)
    at::set_num_threads(ThreadsPerRank(RanksOnHost(environment)));
  // cuBLAS adds in a fixed order only with a workspace of its own, and looks once.
  if (options.deterministic && device != DeviceRequest::kCpu)
    setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
  SHOAL_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> hosts, JoinHosts(environment, options));
  auto comm = MakeDeviceCommunicator(std::move(hosts), device, options);
  SHOAL_RETURN_IF_ERROR(HeldBack(environment, comm.status()));  // All ranks tell the same
  return comm;
}

void EndJobOnError(Communicator& comm, const absl::Status& status, int exit_code) {
  if (status.ok() || comm.size() == 1) return;
  HoldBack(comm.rank());
  comm.Abort(exit_code, std::string(status.message()));
}

absl::Status HeldBack(const RankEnvironment& environment, const absl::Status& status) {
  if (!status.ok()) HoldBack(environment.rank);
  return status;
}

}  // namespace shoal
