#include "parallel/comm/mpi_runtime.h"

#define OMPI_SKIP_MPICXX 1  // The C++ bindings, which nothing links
#include <mpi.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_cat.h"

namespace shoal {

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
