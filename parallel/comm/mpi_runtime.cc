#include "parallel/comm/mpi_runtime.h"

#define OMPI_SKIP_MPICXX 1  // The C++ bindings, which nothing links
#include <fcntl.h>
#include <mpi.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace shoal {
namespace {

class HostComm {
 public:
  HostComm() {
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &comm_);
  }
  ~HostComm() { MPI_Comm_free(&comm_); }
  HostComm(const HostComm&) = delete;
  HostComm& operator=(const HostComm&) = delete;

  // Returns when each rank of the host has heard from each other one.
  void MeetAll() {
    int rank = 0, size = 1;
    MPI_Comm_rank(comm_, &rank);
    MPI_Comm_size(comm_, &size);
    for (int step = 1; step < size; ++step) {
      MPI_Sendrecv(nullptr, 0, MPI_BYTE, (rank + step) % size, 0, nullptr, 0, MPI_BYTE,
                   (rank + size - step) % size, 0, comm_, MPI_STATUS_IGNORE);
    }
    MPI_Barrier(comm_);
  }

 private:
  MPI_Comm comm_;
};

}  // namespace

// [Note: Open MPI's segments] Open MPI's shared-memory transport leaves its files in /dev/shm when
// mpirun is killed. Once the ranks of a host have all mapped them, their names serve nobody, so we
// take them away; since MPI_Finalize complains of a name that is gone, it finds empty files in
// their place.
std::vector<std::string> MpiRuntime::UnlinkSegments() {
  HostComm().MeetAll();
  std::vector<std::string> taken;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    const size_t path = line.find('/');
    if (path == std::string::npos || line.find("/vader_segment.", path) == std::string::npos)
      continue;
    if (unlink(line.c_str() + path) == 0)
      taken.push_back(line.substr(path));  // Fails where a peer was first
  }
  return taken;
}

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
  runtime->unlinked_ = UnlinkSegments();
  return runtime;
}

MpiRuntime::~MpiRuntime() {
  for (const std::string& path : unlinked_)
    close(open(path.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  HostComm().MeetAll();
  MPI_Finalize();
}

std::string MpiRuntime::library() const {
  char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  MPI_Get_library_version(text, &length);
  const std::string whole(text, length);
  return whole.substr(0, whole.find_first_of(",\n"));
}

void MpiRuntime::Abort(int exit_code, const std::string& reason) {
  if (absl::StartsWith(reason, "rank ")) {  // It names the rank already
    std::fprintf(stderr, "shoal: %s\n", reason.c_str());
  } else if (!reason.empty()) {
    std::fprintf(stderr, "shoal: rank %d: %s\n", rank_, reason.c_str());
  }
  std::fflush(nullptr);
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);
}

}  // namespace shoal
