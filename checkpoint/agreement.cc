#include "checkpoint/agreement.h"

namespace shoal {

absl::StatusOr<std::vector<std::string>> AgreeAndGather(Communicator& comm,
                                                        const absl::StatusOr<std::string>& mine) {
  // One byte of status code, then the string or the error's text.
  const std::string message = static_cast<char>(mine.status().code()) +
                              (mine.ok() ? *mine : std::string(mine.status().message()));
  std::vector<std::string> all = AllGatherStrings(comm, message);
  for (size_t rank = 0; rank < all.size(); ++rank) {
    const auto code = static_cast<absl::StatusCode>(all[rank][0]);
    all[rank].erase(0, 1);
    if (code == absl::StatusCode::kOk) continue;
    return absl::Status(
        code, comm.size() == 1 ? all[rank] : absl::StrCat("rank ", rank, ": ", all[rank]));
  }
  return all;
}

absl::Status Agree(Communicator& comm, const absl::Status& mine) {
  const absl::StatusOr<std::string> empty = std::string();
  return AgreeAndGather(comm, mine.ok() ? empty : absl::StatusOr<std::string>(mine)).status();
}

}  // namespace shoal
