// Attention of kernels/cuda against the plain operators in float64.
#include <gtest/gtest.h>

#include "kernels/attention.h"
#include "kernels/attention_device.h"
#include "kernels/reference.h"
#include "tests/kernels/device_under_test.h"
#include "tests/kernels/in_pieces.h"

namespace shoal {
namespace {

class CudaAttentionTest : public DeviceTest {
 protected:
  void ExpectEqualsReference(const Tensors& inputs, at::ScalarType dtype,
                             const AttentionOptions& options = {}) {
    AttentionOptions placed = options;
    placed.documents_BT = Placed(options.documents_BT);
    const Operation fused = [&](const Tensors& x, const Parameters&) {
      return CausalAttention(x[0], x[1], x[2], placed);
    };
    const Operation exact = [&](const Tensors& x, const Parameters&) {
      return reference::CausalAttention(x[0], x[1], x[2], options);
    };
    Check(fused, exact, inputs, {}, dtype);
  }
  void ExpectPiecesEqual(const Tensors& inputs, const Cut& cut, at::ScalarType dtype) {
    ExpectPiecesEqualWhole(inputs, cut, dtype, *DeviceUnderTest());
  }
};
using LibraryAttentionTest = DeviceTest;

TEST_F(CudaAttentionTest, EqualsReference) {
  for (at::ScalarType dtype : kDeviceDtypes) {
    ExpectEqualsReference(RandomQkv(2, 1, 2, 1, 8), dtype);
    ExpectEqualsReference(RandomQkv(1, 3, 4, 2, 17), dtype);
    ExpectEqualsReference(RandomQkv(2, 129, 4, 2, 64), dtype);
    ExpectEqualsReference(RandomQkv(1, 100, 3, 1, 80), dtype);  // Each tile of heads
    ExpectEqualsReference(RandomQkv(1, 70, 2, 2, 130), dtype);
  }
  ExpectEqualsReference(RandomQkv(1, 33, 2, 1, 256), at::kBFloat16);
  ExpectEqualsReference(RandomQkv(0, 5, 2, 1, 8), at::kFloat);
}

TEST_F(CudaAttentionTest, LargerHeadsTakeThePlainPath) {
  EXPECT_FALSE(HasDeviceAttention(Placed(at::empty({1, 1, 1, 264}))));
  ExpectEqualsReference(RandomQkv(1, 5, 2, 1, 264), at::kFloat);
}

TEST_F(CudaAttentionTest, DocumentsDoNotSeeEachOther) {
  Tensor documents = at::zeros({2, 200}, at::kInt);
  documents[0].narrow(0, 70, 130) += 1;
  documents[0].narrow(0, 71, 129) += 1;
  documents[0].narrow(0, 160, 40) += 1;
  documents[1].narrow(0, 1, 199) += 5;
  for (at::ScalarType dtype : kDeviceDtypes)
    ExpectEqualsReference(RandomQkv(2, 200, 2, 1, 16), dtype, {.documents_BT = documents});
}

TEST_F(CudaAttentionTest, DropsTheProbabilitiesThatTheReferenceDrops) {
  const Tensor keys = at::tensor({int64_t{123456789012345}, int64_t{-77}});
  for (at::ScalarType dtype : kDeviceDtypes) {
    ExpectEqualsReference(
        RandomQkv(2, 80, 4, 2, 33), dtype,
        {.scale = 0.3, .dropout = {.rate = 0.3, .keys_B = keys, .first_head = 5}});
  }
}

TEST_F(CudaAttentionTest, ReadsHeadsOutOfOneProduct) {
  const Tensor qkv = at::randn({2, 70, 4, 32});
  const Tensor q = qkv.narrow(2, 0, 2), k = qkv.narrow(2, 2, 1), v = qkv.narrow(2, 3, 1);
  const Tensor there = Placed(qkv);
  const Tensor got =
      CausalAttention(there.narrow(2, 0, 2), there.narrow(2, 2, 1), there.narrow(2, 3, 1)).cpu();
  EXPECT_TRUE(Near(got, reference::CausalAttention(q, k, v, {}), at::kFloat));
}

TEST_F(CudaAttentionTest, NanStaysInItsRows) {
  Tensor q = at::randn({1, 100, 1, 16}), k = at::randn({1, 100, 1, 16}),
         v = at::randn({1, 100, 1, 16});
  q[0][40][0][3] = std::numeric_limits<float>::quiet_NaN();
  const Tensor bad =
      CausalAttention(Placed(q), Placed(k), Placed(v)).cpu().isnan().any(-1).view({100});
  EXPECT_TRUE(bad[40].item<bool>());
  EXPECT_EQ(bad.sum().item<int64_t>(), 1);
}

TEST_F(CudaAttentionTest, PiecesEqualWholeSequences) {
  const Tensor keys = at::tensor({int64_t{12345}, int64_t{-77}});
  Tensor documents = at::zeros({2, 130}, at::kInt);
  documents[0].narrow(0, 66, 64) += 1;
  documents[1].narrow(0, 3, 127) += 1;
  for (at::ScalarType dtype : kDeviceDtypes) {
    ExpectPiecesEqual(RandomQkv(2, 130, 4, 2, 16), {.ends = {1, 65, 130}, .options = {}}, dtype);
    ExpectPiecesEqual(RandomQkv(2, 130, 2, 1, 65),
                      {.ends = {40, 66, 130}, .options = {.documents_BT = documents}}, dtype);
    ExpectPiecesEqual(RandomQkv(2, 130, 2, 2, 33),
                      {.ends = {40, 65, 130},
                       .options = {.dropout = {.rate = 0.3, .keys_B = keys, .first_head = 5}}},
                      dtype);
  }
}

TEST_F(LibraryAttentionTest, EqualsReference) {
  const Operation library = [](const Tensors& x, const Parameters&) {
    return LibraryAttention(x[0], x[1], x[2], 0.2);
  };
  const Operation exact = [](const Tensors& x, const Parameters&) {
    return reference::CausalAttention(x[0], x[1], x[2], {.scale = 0.2});
  };
  for (at::ScalarType dtype : {at::kBFloat16, at::kHalf}) {
    Check(library, exact, RandomQkv(2, 40, 4, 2, 16), {}, dtype, 2);
    Check(library, exact, RandomQkv(2, 40, 2, 2, 16), {}, dtype, 2);
  }
}

}  // namespace
}  // namespace shoal
