// The fake device itself: that it computes as the host does and is as strict as a GPU.
#include "tests/fake_device/fake_device.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace shoal {
namespace {

using at::Tensor;
using at::indexing::Slice;

void ExpectSame(const Tensor& device, const Tensor& host) {
  ASSERT_TRUE(device.is_privateuseone());
  ASSERT_EQ(device.sizes(), host.sizes());
  ASSERT_EQ(device.scalar_type(), host.scalar_type());
  EXPECT_TRUE(at::equal(device.cpu(), host)) << device.cpu() << "\nis not\n" << host;
}

const at::TensorOptions kFakeDouble = at::TensorOptions(FakeDevice()).dtype(at::kDouble);

TEST(FakeDevice, MovesTensors) {
  const Tensor host = at::randn({3, 4}, at::kDouble);
  const Tensor device = host.to(FakeDevice());
  EXPECT_EQ(device.device().str(), "fake:0");
  EXPECT_TRUE(IsFakeAddress(device.const_data_ptr()));
  ExpectSame(device, host);
  ExpectSame(device.t(), host.t());
  ExpectSame(device.to(at::kFloat), host.to(at::kFloat));
  ExpectSame(device.to(FakeDevice(1)), host);
  EXPECT_EQ(device.to(FakeDevice(1)).device().index(), 1);
  EXPECT_EQ(device[1][2].item<double>(), host[1][2].item<double>());
}

TEST(FakeDevice, ComputesAsTheHost) {
  const Tensor a = at::randn({5, 4}, at::kDouble), b = at::randn({4, 6}, at::kDouble);
  const Tensor fake_a = a.to(FakeDevice()), fake_b = b.to(FakeDevice());
  ExpectSame(fake_a.matmul(fake_b), a.matmul(b));
  ExpectSame(at::linear(fake_a, fake_b.t()), at::linear(a, b.t()));
  ExpectSame(fake_a + 2.5, a + 2.5);
  ExpectSame(fake_a * at::scalar_tensor(2.5, at::kDouble), a * 2.5);
  ExpectSame(fake_a.sum(0), a.sum(0));
  ExpectSame(at::softmax(fake_a, 1), at::softmax(a, 1));
  ExpectSame(std::get<1>(fake_a.max(1)), std::get<1>(a.max(1)));
  ExpectSame(at::cat({fake_a, fake_a}, 1), at::cat({a, a}, 1));
  ExpectSame(at::where(fake_a > 0, fake_a, 0.0), at::where(a > 0, a, 0.0));
  ExpectSame(at::arange(7, at::TensorOptions(FakeDevice()).dtype(at::kLong)),
             at::arange(7, at::kLong));
  ExpectSame(at::zeros({2, 3}, kFakeDouble), at::zeros({2, 3}, at::kDouble));
  ExpectSame(at::full({2}, 4.5, kFakeDouble), at::full({2}, 4.5, at::kDouble));
  ExpectSame(at::zeros_like(fake_a), at::zeros_like(a));
  ExpectSame(fake_a.nonzero(), a.nonzero());
  for (const Tensor& part : fake_a.chunk(2, 1)) EXPECT_TRUE(part.is_alias_of(fake_a));
}

TEST(FakeDevice, WritesThroughViews) {
  Tensor host = at::arange(24, at::kDouble).view({4, 6});
  Tensor device = host.to(FakeDevice());
  for (Tensor* x : {&host, &device}) {
    x->select(1, 2).add_(10);
    x->narrow(0, 1, 2).t().mul_(-1);
    x->view({-1}).slice(0, 0, 24, 5).zero_();
    x->unfold(0, 2, 2).select(0, 1).fill_(7);
    x->index({Slice(0, 2), Slice(3, 5)}).copy_(at::full({2, 2}, 3.0, at::kDouble));
    x->as_strided({2, 2}, {7, 1}, 3).abs_();
  }
  ExpectSame(device, host);
  ExpectSame(device.expand({2, 4, 6}), host.expand({2, 4, 6}));
}

TEST(FakeDevice, WritesResults) {
  const Tensor a = at::randn({4, 4}, at::kDouble), fake_a = a.to(FakeDevice());
  Tensor out = at::empty({4, 4}, kFakeDouble);
  const void* memory = out.const_data_ptr();
  at::mm_out(out, fake_a, fake_a);
  ExpectSame(out, a.mm(a));
  EXPECT_EQ(out.const_data_ptr(), memory);

  Tensor half = at::zeros({8, 4}, kFakeDouble);
  Tensor rows = half.narrow(0, 4, 4);
  at::add_out(rows, fake_a, fake_a);
  ExpectSame(half, at::cat({at::zeros({4, 4}, at::kDouble), a + a}));

  Tensor grown = at::empty({0}, kFakeDouble);
  at::mul_out(grown, fake_a, fake_a);
  ExpectSame(grown, a * a);
  grown.resize_({2, 2}).fill_(1);
  ExpectSame(grown, at::ones({2, 2}, at::kDouble));

  Tensor& same = grown.add_(1);
  EXPECT_EQ(&same, &grown);
}

TEST(FakeDevice, Indexes) {
  Tensor host = at::randn({5, 3}, at::kDouble), device = host.to(FakeDevice());
  const Tensor index = at::tensor({3, 0, 3}, at::kLong), fake_index = index.to(FakeDevice());
  const Tensor rows = at::randn({3, 3}, at::kDouble), fake_rows = rows.to(FakeDevice());
  ExpectSame(device.index({fake_index}), host.index({index}));
  ExpectSame(device.index({at::indexing::Slice(), fake_index.remainder(3)}),
             host.index({at::indexing::Slice(), index.remainder(3)}));
  ExpectSame(device.index({device > 0}), host.index({host > 0}));
  ExpectSame(at::index_select(device, 0, fake_index), at::index_select(host, 0, index));
  device.index_put_({fake_index}, fake_rows, /*accumulate=*/true);
  host.index_put_({index}, rows, /*accumulate=*/true);
  ExpectSame(device, host);
  device.index_add_(0, fake_index, fake_rows);
  host.index_add_(0, index, rows);
  ExpectSame(device, host);
  ExpectSame(device.gather(0, fake_index.view({1, 3})), host.gather(0, index.view({1, 3})));
}

TEST(FakeDevice, SetsStorages) {
  Tensor device = at::randn({6}, kFakeDouble);
  Tensor other = at::empty({0}, kFakeDouble);
  other.set_(device.storage(), 2, {2, 2}, {2, 1});
  ExpectSame(other, device.cpu().narrow(0, 2, 4).view({2, 2}));
  // Memory that comes and goes under a storage, as ZeRO's third stage does.
  at::StorageImpl* storage = device.storage().unsafeGetStorageImpl();
  const size_t bytes = storage->nbytes();
  storage->set_data_ptr_noswap(c10::DataPtr(nullptr, FakeDevice()));
  storage->set_nbytes(0);
  storage->set_data_ptr_noswap(c10::GetAllocator(c10::kPrivateUse1)->allocate(bytes));
  storage->set_nbytes(bytes);
  device.fill_(2);
  ExpectSame(other, at::full({2, 2}, 2.0, at::kDouble));
}

TEST(FakeDevice, Differentiates) {
  const auto grads = [](const Tensor& x0, const Tensor& w0) {
    const Tensor x = x0.detach().requires_grad_(), w = w0.detach().requires_grad_();
    at::gelu(at::linear(x, w)).pow(2).index({at::indexing::Slice(), 1}).sum().backward();
    return std::pair(x.grad(), w.grad());
  };
  const Tensor x = at::randn({5, 4}, at::kDouble), w = at::randn({3, 4}, at::kDouble);
  const auto [x_grad, w_grad] = grads(x, w);
  const auto [fake_x_grad, fake_w_grad] = grads(x.to(FakeDevice(2)), w.to(FakeDevice(2)));
  ExpectSame(fake_x_grad, x_grad);
  ExpectSame(fake_w_grad, w_grad);
}

TEST(FakeDevice, RefusesMixedDevices) {
  Tensor host = at::ones({3}), device = host.to(FakeDevice());
  const Tensor index = at::zeros({2}, at::kLong);
  EXPECT_THROW(device + host, c10::Error);
  EXPECT_THROW(device.add_(host), c10::Error);
  EXPECT_THROW(host.add_(device), c10::Error);
  EXPECT_THROW(device.dot(host), c10::Error);
  EXPECT_THROW(at::add_out(host, device, device), c10::Error);
  EXPECT_THROW(at::cat({device, host}), c10::Error);
  EXPECT_THROW(at::where(host > 0, device, device), c10::Error);
  EXPECT_THROW(device.index({index}), c10::Error);
  EXPECT_THROW(at::index_select(device, 0, index), c10::Error);
  EXPECT_THROW(device.index_put_({index}, device), c10::Error);
  EXPECT_THROW(at::embedding(device.view({3, 1}), index), c10::Error);
  EXPECT_THROW(device + host.to(FakeDevice(1)), c10::Error);
  EXPECT_THROW(device.dot(at::scalar_tensor(1.0)), c10::Error);  // Takes no scalars
  EXPECT_THROW(at::scalar_tensor(1.0).add_(device.sum()), c10::Error);
  EXPECT_NO_THROW(device + at::scalar_tensor(1.0));
  EXPECT_NO_THROW(host.copy_(device));
}

TEST(FakeDevice, HasStreamsAndEvents) {
  const c10::impl::VirtualGuardImpl guard(c10::kPrivateUse1);
  const c10::Stream side = guard.getNewStream(FakeDevice());
  c10::Event event(c10::kPrivateUse1);
  {
    const c10::StreamGuard on(side);
    EXPECT_EQ(guard.getStream(FakeDevice()), side);
    event.record(side);
  }
  EXPECT_NE(guard.getStream(FakeDevice()), side);
  event.block(guard.getStream(FakeDevice()));
  EXPECT_TRUE(event.query());
  side.synchronize();
  const Tensor pinned = at::empty({4}, at::TensorOptions().pinned_memory(true));
  EXPECT_TRUE(pinned.is_pinned());
  EXPECT_FALSE(at::empty({4}).is_pinned());
}

TEST(FakeDevice, GivesMemoryBack) {
  const size_t before = FakeBytesInUse(5);
  for (int i = 0; i < 100; ++i) {
    const Tensor large =
        at::empty({int64_t{1} << 30}, at::TensorOptions(FakeDevice(5)).dtype(at::kByte));
    EXPECT_EQ(FakeBytesInUse(5), before + (int64_t{1} << 30));
  }
  EXPECT_EQ(FakeBytesInUse(5), before);
}

TEST(FakeDeviceDeathTest, HostCodeMayNotTouchItsMemory) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const Tensor device = at::ones({3}, FakeDevice());
  const auto read = [&] { return *static_cast<const volatile float*>(device.const_data_ptr()); };
  EXPECT_DEATH(read(), "host code touched device memory");
  {
    const FakeMemoryOpen open;
    EXPECT_EQ(read(), 1);
  }
  EXPECT_DEATH(read(), "host code touched device memory");
}

TEST(FakeDeviceDeathTest, WritesBehindABlockAreFound) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto overrun = [] {
    const Tensor device = at::ones({3}, FakeDevice());
    const FakeMemoryOpen open;
    static_cast<float*>(device.mutable_data_ptr())[3] = 1;
  };
  EXPECT_DEATH(overrun(), "written");
}

}  // namespace
}  // namespace shoal
