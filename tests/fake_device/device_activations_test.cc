// What a thread makes on a device leaves its memory and comes back as it was, whoever holds it.
#include "core/device_activations.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/offload.h"
#include "core/storage_recorder.h"
#include "tests/fake_device/fake_device.h"

namespace shoal {
namespace {

constexpr int64_t kNumel = 300'000;
constexpr int64_t kBytes = 4 * kNumel;

at::TensorOptions OnFake() { return at::TensorOptions(at::kFloat).device(FakeDevice()); }
at::Tensor Range(double first) { return at::arange(kNumel, OnFake()) + first; }
bool Same(const at::Tensor& got, const at::Tensor& want) { return at::equal(got, want); }

// In host memory, and on disk.
class DeviceActivationsTest : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    CountTensorMemory();
    if (GetParam()) space_ = *OffloadSpace::Open(".");
    store_ = std::make_unique<DeviceActivations>(FakeDevice(), space_.get());
    before_ = FakeBytesInUse();
  }
  void TearDown() override { EXPECT_EQ(InUse(), 0); }
  int64_t InUse() const { return static_cast<int64_t>(FakeBytesInUse() - before_); }

  std::unique_ptr<OffloadSpace> space_;
  std::unique_ptr<ActivationStore> store_;
  size_t before_ = 0;
  const LazyFakeStreams lazy_;
};

INSTANTIATE_TEST_SUITE_P(, DeviceActivationsTest, testing::Bool(),
                         [](const auto& info) { return info.param ? "Disk" : "Host"; });

// A pass forth and back over blocks: two blocks' are on the device at most.
TEST_P(DeviceActivationsTest, TwoBlocksAreThereAtMost) {
  constexpr int kBlocks = 6;
  struct Block {
    std::unique_ptr<KeptTensors> kept;
    at::Tensor first, second, view;
  };
  for (int pass = 0; pass < 3; ++pass) {
    std::vector<Block> blocks;
    for (int i = 0; i < kBlocks; ++i) {
      Block& block = blocks.emplace_back(Block{.kept = store_->Make()});
      {
        const TensorMemoryScope memory(block.kept.get());
        block.first = Range(i);
        block.view = block.first.narrow(0, 100, 1000);
        block.second = block.first * 2;
      }
      EXPECT_LE(InUse(), 4 * kBytes) << i;
      block.kept->PutAside();
      EXPECT_EQ(InUse(), 2 * kBytes) << i;  // It leaves when the next does
    }
    if (space_) space_->Drain();
    const size_t waits = FakeDeviceWaits();
    for (int i = kBlocks; i-- > 0;) {
      Block block = std::move(blocks.back());
      blocks.pop_back();
      block.kept->Bring();
      if (i > 0) blocks.back().kept->Prefetch();
      EXPECT_LE(InUse(), 4 * kBytes) << i;
      const at::Tensor want = Range(i);
      EXPECT_TRUE(Same(block.first, want)) << i;
      EXPECT_TRUE(Same(block.view, want.narrow(0, 100, 1000))) << i;
      EXPECT_TRUE(Same(block.second, want * 2)) << i;
    }
    EXPECT_EQ(FakeDeviceWaits() - waits, 3 * kBlocks);  // Of Same
    EXPECT_EQ(InUse(), 0);
  }
  EXPECT_EQ(store_->bytes_to_host(), 3 * kBlocks * 2 * kBytes);
  EXPECT_EQ(store_->bytes_to_device(), 3 * (kBlocks - 1) * 2 * kBytes);  // The last never left
  if (!space_) return;
  EXPECT_EQ(space_->bytes_written(), 3 * (kBlocks - 1) * OffloadSpace::Rounded(2 * kBytes + 128));
  EXPECT_EQ(space_->bytes_read(), space_->bytes_written());
}

TEST_P(DeviceActivationsTest, NobodyTouchesWhatIsAside) {
  const auto kept = store_->Make(), next = store_->Make();
  at::Tensor x;
  {
    const TensorMemoryScope memory(kept.get());
    x = Range(3);
  }
  kept->PutAside();
  next->PutAside();
  EXPECT_EQ(InUse(), 0);
  EXPECT_THAT([&] { x.sum(); },
              testing::ThrowsMessage<c10::Error>(testing::HasSubstr("is not there")));
  EXPECT_EQ(x.device(), FakeDevice());
  kept->Bring();
  EXPECT_TRUE(Same(x, Range(3)));
}

TEST_P(DeviceActivationsTest, WhatWasThereOrIsSomebodyElsesStays) {
  const at::Tensor weight = Range(1), batch = Range(2), untouched = Range(3);
  const auto kept = store_->Make(), next = store_->Make();
  at::Tensor transposed, cached, output, small, made;
  std::vector<at::Tensor> parts;
  {
    const TensorMemoryScope memory(kept.get());
    transposed = weight.view({2, -1}).t();
    parts = batch.split(kNumel / 2);
    weight.mul_(2);
    {
      const TensorMemoryScope none(nullptr);
      cached = Range(4);
    }
    cached.add_(1);
    output = cached + weight;
    made = output * 2;
    made = made + 0;  // What it was is gone
    small = at::ones({100}, OnFake());
  }
  kept->Leave(output);
  kept->PutAside();
  next->Join(output);
  next->PutAside();
  store_->Make()->PutAside();
  EXPECT_EQ(store_->bytes_to_host(), 2 * kBytes);  // `made` and `output`
  EXPECT_EQ(InUse(), 4 * kBytes + 400);
  EXPECT_TRUE(Same(transposed, (Range(1) * 2).view({2, -1}).t()));
  EXPECT_TRUE(Same(parts[1], Range(2).narrow(0, kNumel / 2, kNumel / 2)));
  EXPECT_TRUE(Same(cached, Range(5)));
  kept->Prefetch();
  next->Bring();
  kept->Bring();
  const at::Tensor want = Range(5) + Range(1) * 2;
  EXPECT_TRUE(Same(output, want));
  EXPECT_TRUE(Same(made, want * 2));
}

// One that saves what it makes, past autograd's operators.
struct Keeps : public torch::autograd::Function<Keeps> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x) {
    const at::Tensor factor = at::empty_like(x);
    at::mul_out(const_cast<at::Tensor&>(factor), x, x);
    ctx->save_for_backward({factor});
    ctx->saved_data["more"] = factor * 3;
    return factor.sum();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list gradients) {
    return {ctx->get_saved_variables()[0] * gradients[0] + ctx->saved_data["more"].toTensor()};
  }
};

TEST_P(DeviceActivationsTest, WhatAutogradSaves) {
  const at::Tensor x = Range(1).set_requires_grad(true);
  const auto kept = store_->Make(), next = store_->Make();
  at::Tensor loss;
  {
    const TensorMemoryScope memory(kept.get());
    loss = Keeps::apply(at::sin(x));
  }
  kept->PutAside();
  next->PutAside();
  EXPECT_EQ(InUse(), kBytes + 4);  // x and the loss
  EXPECT_EQ(store_->bytes_to_host(), 2 * kBytes);
  kept->Bring();
  torch::autograd::backward({loss}, {});
  const at::Tensor detached = x.detach(), sine = at::sin(detached);
  EXPECT_TRUE(Same(x.grad(), (sine * sine + sine * sine * 3) * at::cos(detached)));
}

// Other passes' as well: of pipelines, where one goes back while another has just gone forth.
TEST_P(DeviceActivationsTest, WhoIsAskedForTakesThePlaceOfWhoLeaves) {
  const auto first = store_->Make(), last = store_->Make();
  at::Tensor x, y;
  {
    const TensorMemoryScope memory(first.get());
    x = Range(1);
  }
  first->PutAside();
  {
    const TensorMemoryScope memory(last.get());
    y = Range(2);
  }
  last->PutAside();
  first->Prefetch();
  EXPECT_EQ(InUse(), space_ ? 0 : kBytes);
  first->Bring();
  EXPECT_EQ(InUse(), kBytes);
  last->Bring();
  EXPECT_TRUE(Same(x, Range(1)));
  EXPECT_TRUE(Same(y, Range(2)));
}

// As of a pass that failed.
TEST_P(DeviceActivationsTest, WhoIsForgottenLeavesNothing) {
  std::unique_ptr<KeptTensors> blocks[] = {store_->Make(), store_->Make(), store_->Make()};
  at::Tensor tensors[3];
  for (int i = 0; i < 3; ++i) {
    {
      const TensorMemoryScope memory(blocks[i].get());
      tensors[i] = Range(i);
    }
    blocks[i]->PutAside();
  }
  blocks[2] = nullptr;  // While it leaves
  EXPECT_TRUE(Same(tensors[2], Range(2)));
  blocks[1]->Prefetch();
  blocks[1] = nullptr;  // On its way
  if (!space_) {
    EXPECT_TRUE(Same(tensors[1], Range(1)));
  }
  tensors[0] = at::Tensor();  // While it is aside
  blocks[0]->Bring();
  EXPECT_EQ(InUse(), (space_ ? 1 : 2) * kBytes);
}

// More than a chunk of host memory, at any offset.
TEST_P(DeviceActivationsTest, ChunksOfHostMemory) {
  const auto kept = store_->Make(), next = store_->Make();
  std::vector<at::Tensor> tensors;
  {
    const TensorMemoryScope memory(kept.get());
    for (const int64_t numel : {int64_t{1001}, 5 * DeviceActivations::kChunkBytes / 8 + 1,
                                int64_t{3003}, DeviceActivations::kChunkBytes / 4})
      tensors.push_back(at::arange(numel, OnFake()));
  }
  std::vector<at::Tensor> want;
  for (const at::Tensor& tensor : tensors) want.push_back(tensor.clone());
  kept->PutAside();
  next->PutAside();
  kept->Bring();
  for (size_t i = 0; i < tensors.size(); ++i) EXPECT_TRUE(Same(tensors[i], want[i])) << i;
}

TEST(StorageRecorderTest, KnowsWhatOperatorsMade) {
  StorageRecorder recorder(FakeDevice());
  const at::Tensor before = Range(0), other_device = at::ones({10}, at::kFloat);
  recorder.Start();
  const at::Tensor copied = other_device.to(FakeDevice());
  const std::vector<at::Tensor> views = before.split(kNumel / 3);
  const auto [values, indices] = before.view({2, -1}).max(0);
  const at::Tensor stacked = at::stack(views[0].split(views[0].numel()));
  const at::Tensor host = copied.to(at::kCPU);
  const at::Tensor picked = before.index({stacked[0].to(at::kLong).remainder(10)});
  recorder.Stop();
  const at::Tensor late = Range(5);
  std::vector<c10::Storage> made = recorder.Take(0);
  ASSERT_EQ(made.size(), 5);
  for (const auto& [i, tensor] :
       {std::pair{0, copied}, {1, values}, {2, indices}, {3, stacked}, {4, picked}})
    EXPECT_EQ(made[i].unsafeGetStorageImpl(), tensor.storage().unsafeGetStorageImpl()) << i;
  EXPECT_TRUE(recorder.Take(0).empty());
}

}  // namespace
}  // namespace shoal
