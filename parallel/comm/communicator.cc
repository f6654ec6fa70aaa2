#include "parallel/comm/communicator.h"

#include <algorithm>
#include <cstring>

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

namespace shoal {
namespace {

at::Tensor ToBytes(const std::string& text, int64_t numel) {
  at::Tensor bytes = at::zeros({numel}, at::kByte);
  if (!text.empty()) std::memcpy(bytes.mutable_data_ptr(), text.data(), text.size());
  return bytes;
}

}  // namespace

std::vector<std::string> AllGatherStrings(Communicator& comm, const std::string& mine) {
  const int size = comm.size();
  at::Tensor length = at::empty({1}, at::kLong);
  length.mutable_data_ptr<int64_t>()[0] = static_cast<int64_t>(mine.size());
  at::Tensor lengths = at::empty({size}, at::kLong);
  comm.AllGather(lengths, length);
  const int64_t* length_of = lengths.const_data_ptr<int64_t>();
  const int64_t longest = *std::max_element(length_of, length_of + size);
  at::Tensor all = at::empty({size * longest}, at::kByte);
  comm.AllGather(all, ToBytes(mine, longest));
  std::vector<std::string> strings;
  const char* text = static_cast<const char*>(all.const_data_ptr());
  for (int rank = 0; rank < size; ++rank)
    strings.emplace_back(text + rank * longest, length_of[rank]);
  return strings;
}

std::string BroadcastString(Communicator& comm, const std::string& text, int root) {
  at::Tensor length = at::empty({1}, at::kLong);
  length.mutable_data_ptr<int64_t>()[0] = static_cast<int64_t>(text.size());
  comm.Broadcast(length, root);
  const int64_t bytes = length.const_data_ptr<int64_t>()[0];
  at::Tensor content = comm.rank() == root ? ToBytes(text, bytes) : at::empty({bytes}, at::kByte);
  comm.Broadcast(content, root);
  return std::string(static_cast<const char*>(content.const_data_ptr()), bytes);
}

}  // namespace shoal
