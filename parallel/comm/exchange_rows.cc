#include "parallel/comm/exchange_rows.h"

#include <numeric>
#include <vector>

#include <ATen/ops/empty.h>

#include "core/status.h"

namespace shoal {
namespace {

std::vector<int64_t> FirstRows(std::span<const int64_t> rows) {
  std::vector<int64_t> first(rows.size(), 0);
  std::partial_sum(rows.begin(), rows.end() - 1, first.begin() + 1);
  return first;
}

}  // namespace

at::Tensor ExchangeRows(Communicator& comm, const at::Tensor& in, std::span<const int64_t> sent,
                        std::span<const int64_t> received) {
  const int ranks = comm.size(), self = comm.rank();
  SHOAL_CHECK(static_cast<int>(sent.size()) == ranks && static_cast<int>(received.size()) == ranks)
      << sent.size() << " and " << received.size() << " counts, " << ranks << " ranks";
  const std::vector<int64_t> first_sent = FirstRows(sent), first_received = FirstRows(received);
  SHOAL_CHECK(in.is_contiguous() && in.size(0) == first_sent.back() + sent.back())
      << in.size(0) << " rows";
  std::vector<int64_t> shape = in.sizes().vec();
  shape[0] = first_received.back() + received.back();
  const at::Tensor out = at::empty(shape, in.options());
  // Neighbours first, so that not all ranks send to the same one at once.
  for (int step = 1; step < ranks; ++step) {
    const int to = (self + step) % ranks;
    if (sent[to] > 0) comm.Send(in.narrow(0, first_sent[to], sent[to]), to);
  }
  out.narrow(0, first_received[self], received[self])
      .copy_(in.narrow(0, first_sent[self], sent[self]));
  for (int step = 1; step < ranks; ++step) {
    const int from = (self + ranks - step) % ranks;
    if (received[from] == 0) continue;
    at::Tensor part = out.narrow(0, first_received[from], received[from]);
    comm.Recv(part, from);
  }
  return out;
}

}  // namespace shoal
