// NCCL's own calls by a group of one, which the communicator itself spares: all of NCCL that a
// machine with one GPU can run.
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>

#include "parallel/comm/device_communicator.h"
#include "parallel/comm/local_communicator.h"
#include "parallel/comm/nccl_handle.h"

namespace shoal {
namespace {

constexpr Signature kCall = {.kind = CollectiveKind::kAllGather};

TEST(OneGpu, CallsNccl) {
  if (NumDevices() == 0) GTEST_SKIP() << "this machine has no GPU";
  const at::Device device(at::kCUDA, 0);
  UseDevice(device);
  const auto fail = [](const std::string& problem) { ADD_FAILURE() << problem; };
  const NcclHandle::Place place = {
      .device = device,
      .watch = std::make_shared<NcclWatch>(device, absl::Milliseconds(100), fail),
      .ledger =
          std::make_shared<CallLedger>(MakeSingleRankCommunicator(), absl::Milliseconds(100), fail),
      .timeout = absl::Minutes(1)};
  const auto what = [] { return std::string("start"); };
  NcclHandle whole(place);
  whole.Begin(NcclHandle::NewId(), 1, 0);
  whole.AwaitReady(what);
  NcclHandle part(place);
  whole.SplitInto(part, 0, 0);
  for (NcclHandle* handle : {&whole, &part}) {
    const at::Tensor in = at::arange(100'000, at::device(device).dtype(at::kFloat));
    for (int round = 0; round < 3; ++round) {
      at::Tensor gathered = at::zeros({100'000}, in.options()), sent = gathered.clone();
      at::Tensor sum = in.clone();
      handle->Run(kCall, [&](ncclComm_t comm, cudaStream_t stream) {
        return ncclAllGather(in.const_data_ptr(), gathered.mutable_data_ptr(), in.nbytes(),
                             ncclInt8, comm, stream);
      });
      handle->Run(kCall, [&](ncclComm_t comm, cudaStream_t stream) {
        void* data = sum.mutable_data_ptr();
        return ncclAllReduce(data, data, sum.numel(), ncclFloat32, ncclSum, comm, stream);
      });
      handle->Run(kCall, [&](ncclComm_t comm, cudaStream_t stream) {
        ncclGroupStart();
        ncclSend(in.const_data_ptr(), in.nbytes(), ncclInt8, 0, comm, stream);
        ncclRecv(sent.mutable_data_ptr(), sent.nbytes(), ncclInt8, 0, comm, stream);
        return ncclGroupEnd();
      });
      for (const at::Tensor& got : {gathered, sum, sent}) EXPECT_TRUE(got.equal(in)) << round;
    }
  }
}

}  // namespace
}  // namespace shoal
