// Point-to-point over NCCL, by the rule that a send never waits for its receiver. Included by
// nccl_*.cc only.
//
// [Note: links] Calls of one NCCL communicator follow each other on the device, so a send that
// waits there for its receiver would hold up everything after it, and two ranks that send to each
// other before they receive would wait for ever. So each ordered pair of ranks that has something
// to send has a communicator of its own, a link, made at its first message. The sender copies its
// tensor and goes on; the copy leaves on a stream of the link's own. Until the receiver has come
// for the first time, messages are kept, and the watch sends them off.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "parallel/comm/nccl_handle.h"

namespace shoal {

class NcclLink;

class NcclLinks {
 public:
  // `group`: the ranks' name in the ledger. `meeting`: of the same ranks and for no other use;
  // brings links' ids from sender to receiver.
  NcclLinks(NcclHandle::Place place, std::string group, std::unique_ptr<Communicator> meeting);
  ~NcclLinks();  // Waits, for as long as a call may take, for receivers to take what was sent

  void Send(const at::Tensor& tensor, int destination);
  void Recv(at::Tensor& tensor, int source);

 private:
  std::unique_ptr<NcclLink> MakeLink(int sender, int receiver);

  NcclHandle::Place place_;
  std::string group_;
  std::unique_ptr<Communicator> meeting_;
  std::map<int, std::unique_ptr<NcclLink>> outgoing_, incoming_;  // By the other rank
};

}  // namespace shoal
