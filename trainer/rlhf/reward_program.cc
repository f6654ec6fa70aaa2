// A user's program as a reward: a child process, its standard input and output two pipes.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "trainer/rlhf/rewards.h"

extern char** environ;

namespace shoal {
namespace {

absl::Status SystemError(const char* what) {
  return absl::InternalError(absl::StrCat("reward program: ", what, ": ", std::strerror(errno)));
}

// A broken pipe is an error of write() while this lives, not a signal that ends the rank.
class NoPipeSignal {
 public:
  NoPipeSignal() {
    sigemptyset(&pipe_);
    sigaddset(&pipe_, SIGPIPE);
    sigset_t pending;
    sigpending(&pending);
    was_pending_ = sigismember(&pending, SIGPIPE) == 1;
    pthread_sigmask(SIG_BLOCK, &pipe_, &before_);
  }
  ~NoPipeSignal() {
    const timespec now{};
    if (!was_pending_) {
      while (sigtimedwait(&pipe_, nullptr, &now) < 0 && errno == EINTR) {
      }
    }
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  NoPipeSignal(const NoPipeSignal&) = delete;
  NoPipeSignal& operator=(const NoPipeSignal&) = delete;

 private:
  sigset_t pipe_, before_;
  bool was_pending_ = false;
};

class ProgramReward final : public Reward {
 public:
  explicit ProgramReward(const ProgramOptions& options) : options_(options) {}
  ~ProgramReward() override;

  absl::Status Start();
  absl::StatusOr<std::vector<double>> Score(std::span<const Answer> answers) override;

 private:
  absl::Status Ended() const;
  // Moves what can be moved in either direction; waits for it until `deadline`.
  absl::Status Exchange(std::string& outgoing, absl::Time deadline);
  absl::StatusOr<double> ParseReply(absl::string_view line) const;

  ProgramOptions options_;
  pid_t child_ = -1;
  int to_child_ = -1, from_child_ = -1;
  std::string incoming_;  // Read, not yet a whole line
};

absl::Status ProgramReward::Start() {
  std::array<int, 2> in, out;
  if (pipe2(in.data(), O_CLOEXEC) != 0) return SystemError("pipe");
  if (pipe2(out.data(), O_CLOEXEC) != 0) {
    const absl::Status failed = SystemError("pipe");
    close(in[0]), close(in[1]);
    return failed;
  }
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in[0], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  // A group of its own, so that what the shell starts ends with it.
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  std::string shell = "/bin/sh", option = "-c", command = options_.command;
  char* arguments[] = {shell.data(), option.data(), command.data(), nullptr};
  const int error = posix_spawn(&child_, shell.c_str(), &actions, &attributes, arguments, environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  close(in[0]), close(out[1]);
  to_child_ = in[1], from_child_ = out[0];
  if (error != 0) {
    child_ = -1;
    errno = error;
    return SystemError("start");
  }
  fcntl(to_child_, F_SETFL, O_NONBLOCK);
  fcntl(from_child_, F_SETFL, O_NONBLOCK);
  return absl::OkStatus();
}

ProgramReward::~ProgramReward() {
  if (to_child_ >= 0) close(to_child_);
  if (from_child_ >= 0) close(from_child_);
  if (child_ <= 0) return;
  // Its input has ended; a moment to notice.
  for (int i = 0; i < 100; ++i) {
    if (waitpid(child_, nullptr, WNOHANG) == child_) {
      kill(-child_, SIGKILL);  // What it may have left behind
      return;
    }
    absl::SleepFor(absl::Milliseconds(10));
  }
  kill(-child_, SIGKILL);
  waitpid(child_, nullptr, 0);
}

absl::Status ProgramReward::Ended() const {
  return absl::AbortedError(absl::StrCat("reward program `", options_.command,
                                         "` ended before it had answered every line"));
}

absl::Status ProgramReward::Exchange(std::string& outgoing, absl::Time deadline) {
  std::array<pollfd, 2> ready = {pollfd{from_child_, POLLIN, 0}, pollfd{to_child_, POLLOUT, 0}};
  const int64_t left = std::max<int64_t>(0, absl::ToInt64Milliseconds(deadline - absl::Now()));
  const int count = poll(ready.data(), outgoing.empty() ? 1 : 2, static_cast<int>(left));
  if (count < 0) return errno == EINTR ? absl::OkStatus() : SystemError("poll");
  if (count == 0) {
    return absl::DeadlineExceededError(
        absl::StrCat("reward program `", options_.command, "` was silent: no answer within ",
                     absl::FormatDuration(options_.timeout), " (rlhf.rewards.timeout_s)"));
  }
  if (ready[1].revents != 0) {
    const NoPipeSignal no_signal;
    const ssize_t written = write(to_child_, outgoing.data(), outgoing.size());
    if (written < 0 && errno != EAGAIN && errno != EINTR)
      return errno == EPIPE ? Ended() : SystemError("write");
    if (written > 0) outgoing.erase(0, written);
  }
  if (ready[0].revents != 0) {
    std::array<char, 65536> buffer;
    const ssize_t got = read(from_child_, buffer.data(), buffer.size());
    if (got == 0) return Ended();
    if (got < 0 && errno != EAGAIN && errno != EINTR) return SystemError("read");
    if (got > 0) incoming_.append(buffer.data(), got);
  }
  return absl::OkStatus();
}

absl::StatusOr<double> ProgramReward::ParseReply(absl::string_view line) const {
  double reward = 0;
  bool understood = absl::SimpleAtod(line, &reward);
  if (!understood) {
    const absl::StatusOr<Json> object = ParseJson(std::string(line), "reply");
    understood = object.ok() && object->is_object() && object->contains("reward") &&
                 object->at("reward").is_number();
    if (understood) reward = object->at("reward").get<double>();
  }
  if (understood && std::isfinite(reward)) return reward;
  return absl::AbortedError(
      absl::StrCat("reward program `", options_.command, "` wrote \"", line.substr(0, 60),
                   "\", expected a finite number or an object with \"reward\""));
}

absl::StatusOr<std::vector<double>> ProgramReward::Score(std::span<const Answer> answers) {
  std::string outgoing;
  for (const Answer& answer : answers) {
    Json line = answer.prompt->line;
    line["completion"] = answer.text;
    absl::StrAppend(
        &outgoing, line.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace), "\n");
  }
  const absl::Time deadline = absl::Now() + options_.timeout;
  std::vector<double> rewards;
  while (rewards.size() < answers.size()) {
    const size_t end = incoming_.find('\n');
    if (end == std::string::npos) {
      SHOAL_RETURN_IF_ERROR(Exchange(outgoing, deadline));
      continue;
    }
    SHOAL_ASSIGN_OR_RETURN(
        const double reward,
        ParseReply(absl::StripAsciiWhitespace(absl::string_view(incoming_).substr(0, end))));
    rewards.push_back(reward);
    incoming_.erase(0, end + 1);
  }
  return rewards;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Reward>> MakeProgramReward(const ProgramOptions& options) {
  auto reward = std::make_unique<ProgramReward>(options);
  SHOAL_RETURN_IF_ERROR(reward->Start());
  return std::unique_ptr<Reward>(std::move(reward));
}

}  // namespace shoal
