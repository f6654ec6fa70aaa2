#include "launch/launcher.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "launch/launcher_output.h"
#include "launch/ranks.h"

namespace shoal {
namespace {

constexpr int kNotFound = 127;
constexpr int kSignalled = 128;
// mpirun is told of an interrupt by the terminal as well; it gets this long before we tell it
// again, harder.
constexpr int kPatienceMilliseconds = 1500;

std::string FindInPath(const std::string& program) {
  const char* path = std::getenv("PATH");
  for (absl::string_view folder : absl::StrSplit(path != nullptr ? path : "/usr/bin:/bin", ':')) {
    std::string candidate = absl::StrCat(folder.empty() ? "." : folder, "/", program);
    if (access(candidate.c_str(), X_OK) == 0) return candidate;
  }
  return "";
}

std::string ThisProgram() {
  char path[4096];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof(path));
  return length > 0 ? std::string(path, length) : "";
}

std::vector<std::string> MpirunArguments(const std::string& mpirun, int argc,
                                         const char* const* argv, int num_ranks) {
  std::vector<std::string> arguments = {mpirun, "-np", absl::StrCat(num_ranks), "--bind-to",
                                        "none"};
  if (geteuid() == 0) arguments.push_back("--allow-run-as-root");
  if (num_ranks > sysconf(_SC_NPROCESSORS_ONLN)) arguments.push_back("--oversubscribe");
  // One host: no search for network hardware, and no copy mechanism that containers forbid.
  for (const char* setting :
       {"pml ob1", "btl self,vader,tcp", "btl_vader_single_copy_mechanism none"}) {
    const std::vector<std::string> pair = absl::StrSplit(setting, ' ');
    arguments.insert(arguments.end(), {"--mca", pair[0], pair[1]});
  }
  arguments.push_back(ThisProgram());
  arguments.insert(arguments.end(), argv + 1, argv + argc);
  return arguments;
}

std::vector<std::string> RankVariables(int num_ranks) {
  std::vector<std::string> variables;
  for (char** variable = environ; *variable != nullptr; ++variable) variables.push_back(*variable);
  if (std::getenv("OMP_NUM_THREADS") == nullptr) {
    variables.push_back(absl::StrCat("OMP_NUM_THREADS=", ThreadsPerRank(num_ranks)));
  }
  return variables;
}

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& text : strings) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

// Signals come through a file descriptor while this lives.
class SignalQueue {
 public:
  SignalQueue() {
    sigset_t signals;
    sigemptyset(&signals);
    for (int signal : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&signals, signal);
    sigprocmask(SIG_BLOCK, &signals, &before_);
    fd_ = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
  }
  ~SignalQueue() {
    close(fd_);
    sigprocmask(SIG_SETMASK, &before_, nullptr);
  }
  int fd() const { return fd_; }
  const sigset_t& before() const { return before_; }
  // 0 if none waits.
  int Next() {
    signalfd_siginfo info;
    return read(fd_, &info, sizeof(info)) == sizeof(info) ? static_cast<int>(info.ssi_signo) : 0;
  }

 private:
  int fd_ = -1;
  sigset_t before_;
};

// Only async-signal-safe calls between fork and exec.
pid_t Start(std::vector<std::string> arguments, std::vector<std::string> variables, int stderr_fd,
            const sigset_t& signals) {
  const std::vector<char*> argv = Pointers(arguments);
  const std::vector<char*> envp = Pointers(variables);
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child != 0) return child;
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(kNotFound);
  sigprocmask(SIG_SETMASK, &signals, nullptr);
  dup2(stderr_fd, STDERR_FILENO);
  execve(argv[0], argv.data(), envp.data());
  _exit(kNotFound);
}

void WriteAll(int fd, absl::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno != EINTR) return;
    if (written > 0) bytes.remove_prefix(written);
  }
}

// Waits for `child`, passing its output on and signals to it. Returns its wait status;
// `interrupted` is the first signal that asked us to end, or 0.
int Attend(pid_t child, int output_fd, SignalQueue& signals, LauncherOutput& output,
           int& interrupted) {
  interrupted = 0;
  int next_signal = SIGTERM;
  int status = 0;
  bool ended = false;
  // Readable once the child has ended; unlike SIGCHLD, no other thread can take that from us.
  int child_fd = static_cast<int>(syscall(SYS_pidfd_open, child, 0));
  while (true) {
    pollfd events[] = {{signals.fd(), POLLIN, 0}, {output_fd, POLLIN, 0}, {child_fd, POLLIN, 0}};
    const int timeout = ended ? 0 : interrupted != 0 ? kPatienceMilliseconds : -1;
    const int ready = poll(events, 3, timeout);
    if (ready < 0 && errno != EINTR) break;
    if (ready == 0 && ended) break;  // What the ranks' orphans still hold open says nothing more
    if (ready == 0) {
      kill(child, next_signal);
      next_signal = SIGKILL;
    }
    while (const int signal = signals.Next()) {
      if (interrupted == 0) {
        interrupted = signal;
        if (signal != SIGINT) kill(child, SIGTERM);
      } else {
        kill(child, next_signal);
        next_signal = SIGKILL;
      }
    }
    if (events[2].revents != 0 && waitpid(child, &status, WNOHANG) == child) {
      ended = true;
      close(child_fd);
      child_fd = -1;
    }
    char buffer[65536];
    if (events[1].revents == 0) continue;
    const ssize_t bytes = read(output_fd, buffer, sizeof(buffer));
    if (bytes > 0) output.Add(absl::string_view(buffer, bytes));
    if (bytes == 0 && ended) break;
    if (bytes == 0) output_fd = -1;  // poll ignores it
  }
  return status;
}

int ExitCode(int status, int interrupted, const LauncherOutput& output) {
  if (interrupted != 0) return kSignalled + interrupted;
  if (output.killed() && !output.rank_explained()) {
    const auto [rank, signal] = *output.killed();
    std::fprintf(stderr, "shoal: rank %d was ended by signal %d (%s)%s\n", rank, signal,
                 strsignal(signal),
                 signal == SIGKILL ? "; the system does that when memory runs out" : "");
    return kSignalled + signal;
  }
  if (WIFSIGNALED(status)) {
    const int signal = WTERMSIG(status);
    std::fprintf(stderr, "shoal: mpirun was ended by signal %d (%s)\n", signal, strsignal(signal));
    return kSignalled + signal;
  }
  const int code = WEXITSTATUS(status);
  if (code != 0 && !output.rank_explained())
    std::fprintf(stderr, "shoal: the ranks ended with exit code %d\n", code);
  return code;
}

}  // namespace

int LaunchRanks(int argc, const char* const* argv, int num_ranks) {
  const std::string mpirun = FindInPath("mpirun");
  if (mpirun.empty()) {
    std::fprintf(
        stderr, "shoal: -n %d needs mpirun, which is not in PATH: install Open MPI (openmpi-bin)\n",
        num_ranks);
    return kNotFound;
  }
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    std::fprintf(stderr, "shoal: cannot start mpirun: %s\n", std::strerror(errno));
    return kNotFound;
  }
  SignalQueue signals;
  const pid_t child = Start(MpirunArguments(mpirun, argc, argv, num_ranks),
                            RankVariables(num_ranks), ends[1], signals.before());
  close(ends[1]);
  if (child < 0) {
    std::fprintf(stderr, "shoal: cannot start mpirun: %s\n", std::strerror(errno));
    close(ends[0]);
    return kNotFound;
  }
  LauncherOutput output([](absl::string_view bytes) { WriteAll(STDERR_FILENO, bytes); });
  int interrupted = 0;
  const int status = Attend(child, ends[0], signals, output, interrupted);
  output.Finish();
  close(ends[0]);
  return ExitCode(status, interrupted, output);
}

}  // namespace shoal
