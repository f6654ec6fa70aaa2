#include "parallel/tensor_parallel.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "kernels/cross_entropy.h"
#include "kernels/reference.h"
#include "parallel/comm/device_communicator.h"
#include "parallel/comm/local_communicator.h"
#include "parallel/comm/staged_communicator.h"
#include "tests/fake_device/fake_device.h"

namespace shoal {
namespace {

constexpr int64_t kRows = 12, kChannels = 5;

void Near(const Tensor& got, const Tensor& want, const char* what) {
  EXPECT_TRUE(at::allclose(got.cpu(), want.cpu(), 1e-12, 1e-13)) << what << "\n"
                                                                 << got << "\n"
                                                                 << want;
}

// The same on every rank.
Tensor Fixed(at::IntArrayRef sizes, double phase) {
  int64_t numel = 1;
  for (int64_t size : sizes) numel *= size;
  return (at::arange(numel, at::kDouble) * 0.7 + phase).sin().view(sizes);
}

// Runs `body` on ranks that compute on the CPU, and on ranks of a device each.
void OnBothDevices(int ranks, const std::function<void(Communicator&)>& body) {
  for (bool fake : {false, true}) {
    SCOPED_TRACE(fake ? "on a device" : "on the CPU");
    const absl::Status status = RunRanks(ranks, [&](Communicator& host) {
      if (!fake) {
        body(host);
        return absl::OkStatus();
      }
      const c10::Device device = FakeDevice(host.rank());
      UseDevice(device);
      body(*MakeStagedCommunicator(host.Split(/*color=*/0, /*key=*/host.rank()), device));
      return absl::OkStatus();
    });
    EXPECT_TRUE(status.ok()) << status;
  }
}

Tensor Sum(Communicator& comm, const Tensor& part) {
  Tensor sum = part.clone();
  comm.AllReduce(sum);
  return sum;
}

TEST(EvenRange, DealsOutInOrder) {
  int64_t next = 0;
  for (int rank = 0; rank < 4; ++rank) {
    const TensorCut::Range range = EvenRange(10, {.rank = rank, .size = 4});
    EXPECT_EQ(range.begin, next);
    EXPECT_EQ(range.end - range.begin, rank < 2 ? 3 : 2);
    next = range.end;
  }
  EXPECT_EQ(next, 10);
}

TEST(TensorParallel, EnterAndLeaveAreEachOthersTransposes) {
  for (int ranks : {1, 2, 3, 4}) {
    for (bool sequence_parallel : {true, false}) {
      OnBothDevices(ranks, [&](Communicator& comm) {
        const TensorParallel tensor(comm, sequence_parallel);
        const Tensor all = Fixed({kRows, kChannels}, 0).to(comm.device());
        Tensor mine = tensor.Rows(all).clone().requires_grad_(true);
        const Tensor entered = tensor.Enter(mine);
        Near(entered, all, "Enter");
        const double factor = comm.rank() + 1;
        (entered * factor).sum().backward();
        Near(mine.grad(), at::full_like(mine, ranks * (ranks + 1) / 2.0), "Enter, backward");

        Tensor part = (all * factor).requires_grad_(true);
        const Tensor left = tensor.Leave(part);
        Near(left, tensor.Rows(all) * (ranks * (ranks + 1) / 2.0), "Leave");
        (left * tensor.Rows(all)).sum().backward();
        Near(part.grad(), all, "Leave, backward");
      });
    }
  }
}

// Vocabularies that divide over the ranks, that do not, and that leave a rank nothing.
TEST(TensorParallel, VocabularyEqualsOneRank) {
  for (int ranks : {1, 2, 3, 4}) {
    for (int64_t vocabulary : {3, 8, 13}) {
      for (int64_t chunk_rows : {0, 1, 5}) {
        OnBothDevices(ranks, [&](Communicator& comm) {
          const TensorParallel tensor(comm, true);
          const TensorCut::Range range = EvenRange(vocabulary, tensor.place());
          const Tensor table = Fixed({vocabulary, kChannels}, 0.3).to(comm.device());
          Tensor targets = (at::arange(kRows) % vocabulary).to(comm.device());
          targets[4] = -100;
          const CrossEntropyOptions dense{
              .denominator = 3.5, .ignore_index = -100, .label_smoothing = 0.2};
          const TensorParallel::VocabularyOptions cut{.vocabulary = vocabulary,
                                                      .range = range,
                                                      .denominator = 3.5,
                                                      .ignore_index = -100,
                                                      .chunk_rows = chunk_rows,
                                                      .label_smoothing = 0.2};
          const auto local = [&](const Tensor& whole) {
            return whole.narrow(0, range.begin, range.end - range.begin).clone();
          };
          const Tensor inputs = Fixed({kRows, kChannels}, 1).to(comm.device());
          Tensor hidden = inputs.clone().requires_grad_(true);
          Tensor whole = table.clone().requires_grad_(true);
          Tensor want = reference::LinearCrossEntropy(hidden, whole, targets, dense);
          (want * 2).backward();

          Tensor mine = inputs.clone().requires_grad_(true);
          Parameter part{local(table).requires_grad_(true), local(at::zeros_like(table))};
          const Tensor loss = tensor.CrossEntropy(mine, part, targets, cut);
          (loss * 2).backward();
          Near(loss, want, "loss");
          Near(part.grad, local(whole.grad()), "gradient of the matrix");
          Near(Sum(comm, mine.grad()), hidden.grad(), "gradient of the hidden states");

          hidden.mutable_grad().reset();
          whole.mutable_grad().reset();
          const Tensor weights = Fixed({kRows}, 2).to(comm.device());
          want = reference::LinearLogprobs(hidden, whole, targets, dense);
          (want * weights).sum().backward();
          mine.mutable_grad().reset();
          part.grad.zero_();
          const Tensor logprobs = tensor.Logprobs(mine, part, targets, cut);
          (logprobs * weights).sum().backward();
          Near(logprobs, want, "log-probabilities");
          Near(part.grad, local(whole.grad()), "gradient of the matrix, by row");
          Near(Sum(comm, mine.grad()), hidden.grad(), "gradient of the hidden states, by row");

          const Tensor tokens = (at::arange(kRows) * 5 % vocabulary).to(comm.device());
          part.grad.zero_();
          const Tensor rows = tensor.Embedding(tokens, part, range);
          Near(Sum(comm, rows.detach()), table.index_select(0, tokens), "embedding");
          (rows * weights.unsqueeze(1)).sum().backward();
          Near(part.grad,
               local(at::zeros_like(table).index_add(
                   0, tokens, weights.unsqueeze(1).expand({kRows, kChannels}))),
               "gradient of the table");
        });
      }
    }
  }
}

}  // namespace
}  // namespace shoal
