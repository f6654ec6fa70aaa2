#include "parallel/comm/mpi_communicator.h"

#include <string>
#include <utility>

#include "parallel/comm/host_collectives.h"
#include "parallel/comm/mpi_collectives.h"
#include "parallel/comm/shm_backend.h"

namespace shoal {
namespace {

bool OnOneHost(const MpiRuntime& runtime) {
  MPI_Comm host;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host);
  int on_host = 0;
  MPI_Comm_size(host, &on_host);
  MPI_Comm_free(&host);
  int all = on_host == runtime.size();
  MPI_Allreduce(MPI_IN_PLACE, &all, 1, MPI_INT, MPI_LAND, MPI_COMM_WORLD);
  return all != 0;
}

// nullptr on every rank if one of them cannot open the region that rank 0 makes.
std::unique_ptr<Communicator> TryShared(const std::shared_ptr<MpiRuntime>& runtime,
                                        const CommOptions& options) {
  auto backend = std::make_shared<ShmBackend>(
      [runtime](int exit_code, const std::string& reason) { runtime->Abort(exit_code, reason); });
  const int size = runtime->size();
  std::shared_ptr<std::byte> region;
  Location location;
  try {
    if (runtime->rank() == 0) std::tie(region, location) = backend->CreateRegion(size);
  } catch (const CommError&) {  // Location of segment 0: told to all
  }
  MPI_Bcast(&location, sizeof(location), MPI_BYTE, 0, MPI_COMM_WORLD);
  try {
    if (runtime->rank() != 0 && location.segment != 0) region = backend->OpenRegion(location, size);
  } catch (const CommError&) {
  }
  int opened = region != nullptr;
  MPI_Allreduce(MPI_IN_PLACE, &opened, 1, MPI_INT, MPI_LAND, MPI_COMM_WORLD);
  if (!opened) return nullptr;
  return std::make_unique<HostCommunicator>(std::move(backend), std::move(region), size,
                                            runtime->rank(), options);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> MakeMpiCommunicator(
    std::shared_ptr<MpiRuntime> runtime, const CommOptions& options) {
  if (options.transport == CommTransport::kAuto && OnOneHost(*runtime)) {
    if (std::unique_ptr<Communicator> shared = TryShared(runtime, options)) return shared;
  }
  MPI_Comm comm;
  if (MPI_Comm_dup(MPI_COMM_WORLD, &comm) != MPI_SUCCESS) {
    return absl::UnavailableError("MPI cannot make a communicator of all ranks");
  }
  return std::make_unique<MpiCommunicator>(std::move(runtime), comm, options);
}

}  // namespace shoal
