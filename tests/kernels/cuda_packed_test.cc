// Kernels of kernels/cuda that pack numbers, against plain operators in float64. That they give the
// host's bits is for tests/fake_device/packed_numbers_test.cc.
#include <gtest/gtest.h>

#include "kernels/optimizer_step.h"
#include "kernels/reference.h"
#include "tests/kernels/device_under_test.h"

namespace shoal {
namespace {

using CudaQuantizeTest = DeviceTest;
using CudaMastersTest = DeviceTest;
using CudaAdamW8BitTest = DeviceTest;

constexpr int64_t kBlock = kDeviceQuantizedBlock;

int64_t NumBlocks(int64_t n) { return (n + kBlock - 1) / kBlock; }

// Wherever values and codes lie: at 16 bytes or not.
TEST_F(CudaQuantizeTest, ComesBackWithinHalfAStep) {
  for (at::ScalarType dtype : kDeviceDtypes) {
    for (int64_t n : {1, 256, 2048, 2052, 5001}) {
      for (int64_t shift : {0, 1}) {
        const int64_t bytes = n + 4 * NumBlocks(n);
        const Tensor exact = at::randn({n}).to(dtype);
        const Tensor values = at::empty({n + shift}, Placed(exact).options()).narrow(0, shift, n);
        values.copy_(exact);
        const Tensor packed = at::zeros({3 * bytes + shift}, values.options().dtype(at::kByte));
        uint8_t* codes = packed.mutable_data_ptr<uint8_t>() + shift;
        const DeviceKernels& kernels = *DeviceKernelsFor(values);
        for (int part = 0; part < 3; ++part)
          kernels.quantize(CallOn(values), values.const_data_ptr(), n, codes + part * bytes);
        kernels.sum_quantized(CallOn(values), codes, 3, n, values.mutable_data_ptr());
        const Tensor error = (values.cpu().to(at::kDouble) / 3 - exact.to(at::kDouble)).abs();
        const double step = exact.abs().max().item<double>() / 127;
        EXPECT_LE(error.max().item<double>(), step / 2 + 5 * Tolerance(dtype))
            << dtype << ", " << n;
      }
    }
  }
}

TEST_F(CudaMastersTest, ComeBack) {
  const int64_t n = 3000, begin = 1001, count = 700;
  const Tensor masters = Placed(at::randn({n})), rounded = masters.to(at::kBFloat16),
               low = at::zeros({n}, masters.options().dtype(at::kShort)),
               signs = at::zeros({(n + 31) / 32}, masters.options().dtype(at::kInt));
  const auto run = [&](const Tensor& bits, int64_t from, int64_t length) {
    return DeviceMasters{.begin = from,
                         .n = length,
                         .bits = static_cast<uint32_t*>(bits.mutable_data_ptr()),
                         .rounded = static_cast<const uint16_t*>(rounded.const_data_ptr()) + from,
                         .low = static_cast<uint16_t*>(low.mutable_data_ptr()),
                         .signs = static_cast<uint32_t*>(signs.mutable_data_ptr())};
  };
  const DeviceKernels& kernels = *DeviceKernelsFor(masters);
  kernels.split_masters(CallOn(masters), run(masters, 0, n));
  const Tensor back = at::empty_like(masters), middle = at::empty({count}, masters.options());
  kernels.join_masters(CallOn(masters), run(back, 0, n));
  kernels.join_masters(CallOn(masters), run(middle, begin, count));
  EXPECT_TRUE(back.equal(masters));
  EXPECT_TRUE(middle.equal(masters.narrow(0, begin, count)));
}

// A run of a weight that begins and ends within blocks.
TEST_F(CudaAdamW8BitTest, EqualsReferenceButForTheCodes) {
  const int64_t whole = 5000, first = 300, n = 3333;
  const Tensor numbers = at::stack({at::linspace(-1, 1, 256), at::linspace(0, 1, 256)});
  const Tensor middles =
      at::constant_pad_nd((numbers.slice(1, 1) + numbers.slice(1, 0, -1)) / 2, {0, 1});
  const Tensor tables = Placed(at::cat({numbers, middles}));
  const Tensor block_of = at::floor_divide(at::arange(first, first + n), kBlock);
  for (at::ScalarType dtype : kDeviceDtypes) {
    const Tensor gradients = at::randn({n}).to(dtype);
    Tensor weights = Placed(at::randn({n}));
    const Tensor copy = at::empty({n}, Placed(gradients).options());
    Tensor want = weights.cpu().to(at::kDouble), want_m, want_v, none;
    Tensor codes[2], scales[2], largest[2], moments[2];
    for (int k = 0; k < 2; ++k) {
      codes[k] = Placed(at::randint(256, {n}, at::kByte));
      scales[k] = Placed(at::rand({NumBlocks(whole)}));
      largest[k] = Placed(at::zeros({NumBlocks(whole)}));
      largest[k][2].fill_(100);  // What another run found
      moments[k] = (numbers[k].index_select(0, codes[k].cpu().to(at::kInt)) *
                    scales[k].cpu().index_select(0, block_of))
                       .to(at::kDouble);
    }
    const AdamWOptions options{
        .learning_rate = 1e-2, .weight_decay = 0.1, .grad_scale = 0.7, .step = 3};
    reference::AdamWStep(want, gradients.to(at::kDouble), moments[0], moments[1], none, options);

    const Tensor placed = Placed(gradients);
    DeviceAdamW8Bit step{.first = first,
                         .n = n,
                         .weights = weights.mutable_data_ptr<float>(),
                         .gradients = placed.const_data_ptr(),
                         .copy = copy.mutable_data_ptr(),
                         .copy_type = ElementTypeOf(dtype),
                         .numbers = tables.const_data_ptr<float>()};
    for (int k = 0; k < 2; ++k) {
      step.codes[k] = codes[k].mutable_data_ptr<uint8_t>();
      step.scales[k] = scales[k].const_data_ptr<float>();
      step.largest[k] = largest[k].mutable_data_ptr<float>();
    }
    const DeviceKernels& kernels = *DeviceKernelsFor(placed);
    kernels.adamw_8bit(CallOn(placed), step, AdamWScalarsOf(options));
    EXPECT_TRUE(Near(weights.cpu(), want, at::kFloat));
    EXPECT_TRUE(copy.equal(weights.to(dtype)));
    kernels.adamw_8bit_codes(CallOn(placed), step, AdamWScalarsOf(options));
    for (int k = 0; k < 2; ++k) {
      const Tensor found = largest[k].cpu();
      for (int64_t block = 0; block < NumBlocks(whole); ++block) {
        const Tensor of_block = moments[k].masked_select(block_of.eq(block));
        const double most = block == 2             ? 100
                            : of_block.numel() > 0 ? of_block.abs().max().item<double>()
                                                   : 0;
        EXPECT_NEAR(found[block].item<double>(), most, 1e-5 * most) << block;
      }
      const Tensor of_element = found.index_select(0, block_of);
      const Tensor back = numbers[k].index_select(0, codes[k].cpu().to(at::kInt)) * of_element;
      const double half_gap = (k == 0 ? 1.0 : 0.5) / 255;
      EXPECT_TRUE(((back - moments[k]).abs() <= of_element * (half_gap + 1e-5)).all().item<bool>());
    }
  }
}

}  // namespace
}  // namespace shoal
