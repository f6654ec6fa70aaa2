#include "parallel/split_master.h"

#include <algorithm>
#include <bit>

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "core/status.h"
#include "kernels/threads.h"

namespace shoal {
namespace {

constexpr int64_t kBlock = 1 << 16;  // Elements that share a list

uint32_t Widened(uint16_t rounded) { return static_cast<uint32_t>(rounded) << 16; }

// Calls visit(block, first, end) for the blocks of [begin, end), on several threads.
template <class Visit>
void ForBlocksOf(int64_t begin, int64_t end, const Visit& visit) {
  const int64_t first_block = begin / kBlock, blocks = (end + kBlock - 1) / kBlock - first_block;
  ParallelFor(blocks, 1, [&](int64_t from, int64_t to) {
    for (int64_t block = first_block + from; block < first_block + to; ++block)
      visit(block, std::max(begin, block * kBlock), std::min(end, (block + 1) * kBlock));
  });
}

const uint16_t* RoundedBits(const Tensor& rounded) {
  return static_cast<const uint16_t*>(rounded.const_data_ptr());
}

void CheckRun(const Tensor& masters, const Tensor& rounded) {
  SHOAL_CHECK(masters.scalar_type() == at::kFloat && rounded.scalar_type() == at::kBFloat16 &&
              masters.numel() == rounded.numel() && masters.is_contiguous() &&
              rounded.is_contiguous())
      << masters.sizes() << " and " << rounded.sizes();
}

}  // namespace

SplitMaster::SplitMaster(int64_t numel, c10::Device device) {
  if (!device.is_cpu()) {
    bits_ = SplitBits::Zeros(numel, device);
    return;
  }
  bits_.low = at::zeros({numel}, at::kShort);
  wholes_.resize((numel + kBlock - 1) / kBlock);
}

void SplitMaster::Join(int64_t begin, const Tensor& rounded, Tensor& masters) const {
  CheckRun(masters, rounded);
  if (bits_.signs.defined()) return bits_.Join(begin, rounded, masters);
  const uint16_t* high = RoundedBits(rounded) - begin;
  const int16_t* low = bits_.low.const_data_ptr<int16_t>();
  float* out = masters.mutable_data_ptr<float>() - begin;
  ForBlocksOf(begin, begin + masters.numel(), [&](int64_t block, int64_t first, int64_t end) {
    for (int64_t i = first; i < end; ++i)
      out[i] = std::bit_cast<float>(Widened(high[i]) +
                                    static_cast<uint32_t>(static_cast<int32_t>(low[i])));
    for (const Whole& whole : wholes_[block]) {
      if (whole.at >= first && whole.at < end) out[whole.at] = std::bit_cast<float>(whole.bits);
    }
  });
}

void SplitMaster::Split(int64_t begin, const Tensor& masters, const Tensor& rounded) {
  CheckRun(masters, rounded);
  if (bits_.signs.defined()) return bits_.Split(begin, masters, rounded);
  const uint16_t* high = RoundedBits(rounded) - begin;
  int16_t* low = bits_.low.mutable_data_ptr<int16_t>();
  const float* in = masters.const_data_ptr<float>() - begin;
  ForBlocksOf(begin, begin + masters.numel(), [&](int64_t block, int64_t first, int64_t end) {
    uint32_t lost = 0;
    for (int64_t i = first; i < end; ++i) {
      const uint32_t rest = std::bit_cast<uint32_t>(in[i]) - Widened(high[i]);
      low[i] = static_cast<int16_t>(rest);
      lost |= rest ^ static_cast<uint32_t>(static_cast<int32_t>(low[i]));
    }
    std::vector<Whole>& wholes = wholes_[block];
    if (lost == 0 && wholes.empty()) return;
    std::erase_if(wholes, [&](const Whole& w) { return w.at >= first && w.at < end; });
    for (int64_t i = first; i < end && lost != 0; ++i) {
      const uint32_t bits = std::bit_cast<uint32_t>(in[i]);
      if (bits != Widened(high[i]) + static_cast<uint32_t>(static_cast<int32_t>(low[i])))
        wholes.push_back({i, bits});
    }
    if (wholes.empty()) std::vector<Whole>().swap(wholes);
  });
}

int64_t SplitMaster::kept_whole() const {
  int64_t total = 0;
  for (const auto& wholes : wholes_) total += static_cast<int64_t>(wholes.size());
  return total;
}

MasterRun MasterRun::Narrow(int64_t first, int64_t count) const {
  return {.plain = plain.defined() ? plain.narrow(0, first, count) : Tensor(),
          .rounded = rounded.defined() ? rounded.narrow(0, first, count) : Tensor(),
          .split = split,
          .begin = begin + first};
}

Tensor MasterRun::Read() const {
  if (!split) return plain;
  Tensor weights = at::empty({rounded.numel()}, rounded.options().dtype(at::kFloat));
  split->Join(begin, rounded, weights);
  return weights;
}

void MasterRun::Keep(const Tensor& weights) const {
  if (split) split->Split(begin, weights, rounded);
}

void MasterRun::RoundAndKeep(const Tensor& weights) const {
  if (rounded.defined()) Tensor(rounded).copy_(weights);
  Keep(weights);
}

}  // namespace shoal
