#include "parallel/comm/comm_queue.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <thread>
#include <vector>

#include <ATen/ops/ones.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "absl/synchronization/notification.h"
#include "parallel/comm/pending_sends.h"
#include "tests/fake_device/fake_device.h"

namespace shoal {
namespace {

c10::Stream CurrentStream() {
  const at::Device device = FakeDevice();
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device);
}

TEST(CommQueue, WorksInOrderOnAThreadOfItsOwn) {
  std::vector<int> done;
  std::thread::id where;
  CommQueue queue;
  for (int work = 0; work < 3; ++work)
    queue.Post([&, work] { done.push_back(work), where = std::this_thread::get_id(); });
  queue.Drain();
  EXPECT_EQ(done, (std::vector<int>{0, 1, 2}));
  EXPECT_NE(where, std::this_thread::get_id());
}

TEST(CommQueue, AWaitIsASpanOnlyIfThereIsSomethingToWaitFor) {
  TraceRecorder recorder;
  recorder.Begin();
  {
    CommQueue queue;
    absl::Notification waits;
    const CommQueue::Ticket ticket = queue.Post([&] { waits.WaitForNotification(); });
    PendingSends::Add(&queue, [&] {  // What a wait asks first
      waits.Notify();
      return true;
    });
    queue.Wait(ticket);
    queue.Wait(ticket);
  }
  recorder.End();
  std::vector<TraceKind> kinds;
  for (const TraceEvent& event : recorder.lanes()[0]->events()) kinds.push_back(event.kind);
  EXPECT_EQ(kinds, (std::vector{TraceKind::kOther, TraceKind::kAwait}));
}

TEST(CommQueue, OfADeviceCallsAtOnceOnAStreamOfItsOwn) {
  const c10::Stream current = CurrentStream();
  std::optional<c10::Stream> beside;
  CommQueue queue(FakeDevice());
  const CommQueue::Ticket ticket = queue.Post([&] { beside = CurrentStream(); });
  ASSERT_TRUE(beside.has_value());
  EXPECT_NE(*beside, current);
  EXPECT_EQ(CurrentStream(), current);
  queue.Wait(ticket);
  queue.Wait(ticket);
}

TEST(CommQueue, OfADeviceKeepsWhatItMovesUntilItsWait) {
  at::Tensor moved = at::ones({3}, FakeDevice());
  const c10::weak_intrusive_ptr<c10::TensorImpl> weak(moved.getIntrusivePtr());
  CommQueue queue(FakeDevice());
  const CommQueue::Ticket first =
      queue.Post([moved = std::exchange(moved, at::Tensor())] { at::Tensor(moved).add_(1); });
  queue.Post([] {});
  EXPECT_FALSE(weak.expired());
  queue.Wait(first);
  EXPECT_TRUE(weak.expired());
}

class CommQueueFailure : public ::testing::TestWithParam<at::Device> {};

TEST_P(CommQueueFailure, IsThrownByWaitAndEndsTheWork) {
  CommQueue queue(GetParam());
  queue.Post([] { throw std::runtime_error("rank 1 is gone"); });
  bool went_on = false;
  const CommQueue::Ticket ticket = queue.Post([&] { went_on = true; });
  EXPECT_THROW(queue.Wait(ticket), std::runtime_error);
  EXPECT_FALSE(went_on);
  EXPECT_THROW(queue.Drain(), std::runtime_error);
}

INSTANTIATE_TEST_SUITE_P(Devices, CommQueueFailure,
                         ::testing::Values(at::Device(at::kCPU), FakeDevice()),
                         [](const auto& info) { return info.param.is_cpu() ? "Cpu" : "Fake"; });

}  // namespace
}  // namespace shoal
