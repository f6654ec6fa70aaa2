#include "parallel/comm/mpi_runtime.h"

#define OMPI_SKIP_MPICXX 1  // The C++ bindings, which nothing links
#include <mpi.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"

namespace shoal {
namespace {

// Open MPI's shared-memory transport leaves its files in /dev/shm when mpirun is killed. Once each rank of a
// host has heard from each other one, all have mapped them, and their names serve nobody.
void UnlinkOpenMpiSegments() {
  MPI_Comm host;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host);
  int rank = 0, size = 1;
  MPI_Comm_rank(host, &rank);
  MPI_Comm_size(host, &size);
  for (int step = 1; step < size; ++step) {
    MPI_Sendrecv(nullptr, 0, MPI_BYTE, (rank + step) % size, 0, nullptr, 0, MPI_BYTE,
                 (rank + size - step) % size, 0, host, MPI_STATUS_IGNORE);
  }
  MPI_Barrier(host);
  MPI_Comm_free(&host);
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    const size_t path = line.find('/');
    if (path != std::string::npos && line.find("/vader_segment.", path) != std::string::npos) {
      unlink(line.c_str() + path);  // Fails where a peer was first
    }
  }
}

}  // namespace

absl::StatusOr<std::shared_ptr<MpiRuntime>> MpiRuntime::Start() {
  int started = 0;
  MPI_Initialized(&started);
  if (started) return absl::FailedPreconditionError("MPI was started before in this process");
  int provided = 0;
  if (const int error = MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided);
      error != MPI_SUCCESS) {
    return absl::UnavailableError(absl::StrCat("MPI did not start, error ", error));
  }
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  auto runtime = std::shared_ptr<MpiRuntime>(new MpiRuntime);
  MPI_Comm_rank(MPI_COMM_WORLD, &runtime->rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &runtime->size_);
  // Every registered tensor holds a file descriptor.
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
    files.rlim_cur = std::min<rlim_t>(files.rlim_max, 1 << 16);
    setrlimit(RLIMIT_NOFILE, &files);
  }
  UnlinkOpenMpiSegments();
  return runtime;
}

MpiRuntime::~MpiRuntime() { MPI_Finalize(); }

std::string MpiRuntime::library() const {
  char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  MPI_Get_library_version(text, &length);
  const std::string whole(text, length);
  return whole.substr(0, whole.find_first_of(",\n"));
}

void MpiRuntime::Abort(int exit_code, const std::string& reason) {
  if (!reason.empty()) std::fprintf(stderr, "shoal: rank %d: %s\n", rank_, reason.c_str());
  std::fflush(nullptr);
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);
}

}  // namespace shoal
