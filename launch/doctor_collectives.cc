#include "launch/doctor_collectives.h"

#include <stdlib.h>
#include <unistd.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/file_system.h"
#include "launch/command.h"
#include "launch/launcher.h"
#include "parallel/comm/device_communicator.h"
#include "parallel/comm/mpi_communicator.h"
#include "parallel/comm/self_check.h"

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kMaxResultBytes = 1 << 20;
constexpr int kMpirunNotFound = 127;

// A file name of this process's own, removed at the end.
class ResultFile {
 public:
  ResultFile() {
    std::error_code ignored;
    std::filesystem::path folder = std::filesystem::temp_directory_path(ignored);
    path_ = (folder / "shoal-doctor-XXXXXX").string();
    const int descriptor = mkstemp(path_.data());
    if (descriptor >= 0)
      close(descriptor);
    else
      path_.clear();
  }
  ~ResultFile() {
    if (!path_.empty()) unlink(path_.c_str());
  }
  ResultFile(const ResultFile&) = delete;
  ResultFile& operator=(const ResultFile&) = delete;
  const std::string& path() const { return path_; }  // "": none could be made

 private:
  std::string path_;
};

Fact ToFact(const std::string& transport, const CollectiveCheck& check) {
  Fact fact = {
      .name = absl::StrCat(transport, " ", check.name),
      .text = absl::StrFormat("%s in %.3f ms, %s", FormatBytes(check.bytes), check.seconds * 1e3,
                              FormatBandwidth(check.bytes_per_second)),
      .value = {{"bytes", check.bytes},
                {"seconds", check.seconds},
                {"bytes_per_second", check.bytes_per_second}},
      .health = Health::kOk};
  if (!check.correct) {
    fact.health = Health::kFailure;
    fact.text = absl::StrCat("wrong: ", check.problem);
    fact.cure =
        transport == "shm" ? "set comm.transport: mpi in recipes, and report this"
        : transport == "nccl"
            ? "set comm.transport: mpi in recipes or NCCL_P2P_DISABLE=1, and report this"
            : "try another Open MPI transport (mpirun --mca btl self,vader,tcp), and report this";
  }
  return fact;
}

Json ToJson(const std::vector<Fact>& facts) {
  Json json = Json::array();
  for (const Fact& fact : facts) {
    json.push_back({{"name", fact.name},
                    {"text", fact.text},
                    {"value", fact.value},
                    {"health", static_cast<int>(fact.health)},
                    {"cure", fact.cure}});
  }
  return json;
}

// What rank 0 of this same program wrote; nothing if it did not come to that.
std::vector<Fact> ReadFacts(const std::string& path) {
  PosixFileSystem files;
  std::vector<Fact> facts;
  const auto text = ReadFile(files, path, kMaxResultBytes);
  if (!text.ok()) return facts;
  const Json json = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_array()) return facts;
  for (const Json& entry : json) {
    facts.push_back({.name = entry["name"],
                     .text = entry["text"],
                     .value = entry["value"],
                     .health = static_cast<Health>(entry["health"].get<int>()),
                     .cure = entry["cure"]});
  }
  return facts;
}

Fact FailedToMeet(const absl::Status& status, const char* cure) {
  return {.name = "communicator",
          .text = std::string(status.message()),
          .health = Health::kFailure,
          .cure = cure};
}

void AddChecks(Communicator& comm, std::vector<Fact>& facts) {
  const std::string name = comm.name();
  for (const CollectiveCheck& check : CheckCollectives(comm)) facts.push_back(ToFact(name, check));
}

void CheckTransport(const std::shared_ptr<MpiRuntime>& runtime, CommTransport transport,
                    std::vector<Fact>& facts) {
  const CommOptions options = {.transport = transport, .timeout = absl::Seconds(30)};
  auto comm = MakeMpiCommunicator(runtime, options);
  if (!comm.ok()) {
    facts.push_back(FailedToMeet(
        comm.status(),
        "see what mpirun says of these ranks; on several hosts, that they reach each other"));
    return;
  }
  AddChecks(**comm, facts);
  if (transport != CommTransport::kAuto) return;
  auto on_device = MakeDeviceCommunicator(*std::move(comm), DeviceRequest::kAuto, options);
  if (!on_device.ok()) {
    facts.push_back(FailedToMeet(on_device.status(), "NCCL_DEBUG=INFO makes NCCL say more"));
  } else if (!(*on_device)->device().is_cpu()) {
    AddChecks(**on_device, facts);
  }
}

}  // namespace

ReportSection CollectivesSection(int num_ranks) {
  ReportSection section = {.name = "collectives"};
  const ResultFile result;
  if (result.path().empty()) {
    section.facts = {{.name = "ranks",
                      .text = "no temporary file can be made",
                      .health = Health::kFailure,
                      .cure = "set TMPDIR to a folder that can be written"}};
    return section;
  }
  const char* arguments[] = {"shoal", "doctor", "--collectives-result", result.path().c_str()};
  const int exit_code = LaunchRanks(std::size(arguments), arguments, num_ranks);
  section.facts = ReadFacts(result.path());
  Fact ranks = {.name = "ranks",
                .text = absl::StrCat(num_ranks, " started"),
                .value = num_ranks,
                .health = Health::kOk};
  if (exit_code == kMpirunNotFound) {
    ranks = {
        .name = "ranks",
        .text = "mpirun is not found",
        .health = Health::kFailure,
        .cure =
            "install Open MPI (Debian: apt install openmpi-bin), or put its bin folder on PATH"};
  } else if (exit_code != 0 || section.facts.empty()) {
    ranks = {.name = "ranks",
             .text = absl::StrFormat("%d started, the job ended with exit code %d", num_ranks,
                                     exit_code),
             .health = Health::kFailure,
             .cure = "the lines above, on standard error, say why"};
  }
  section.facts.insert(section.facts.begin(), ranks);
  return section;
}

absl::Status RunCollectivesRank(const std::string& output) {
  SHOAL_ASSIGN_OR_RETURN(const std::shared_ptr<MpiRuntime> runtime, MpiRuntime::Start());
  std::vector<Fact> facts = {
      {.name = "library", .text = runtime->library(), .value = runtime->library()}};
  try {
    CheckTransport(runtime, CommTransport::kAuto, facts);
    CheckTransport(runtime, CommTransport::kMpi, facts);
  } catch (
      const std::exception& error) {  // CommError: the group is lost, and with it the other ranks
    runtime->Abort(kExitIo, error.what());
  }
  if (runtime->rank() != 0) return absl::OkStatus();
  PosixFileSystem files;
  return WriteFileAtomically(files, output,
                             ToJson(facts).dump(-1, ' ', false, Json::error_handler_t::replace));
}

}  // namespace shoal
