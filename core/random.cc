#include "core/random.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>

#include "core/status.h"

namespace shoal {

uint64_t StreamId(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (unsigned char c : name) hash = (hash ^ c) * 0x100000001b3u;
  return hash;
}

std::array<uint32_t, 4> Philox::Block(uint64_t index) const {
  std::array<uint32_t, 4> x = {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                               static_cast<uint32_t>(stream_),
                               static_cast<uint32_t>(stream_ >> 32)};
  uint32_t k0 = static_cast<uint32_t>(seed_), k1 = static_cast<uint32_t>(seed_ >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = 0xD2511F53ull * x[0], p1 = 0xCD9E8D57ull * x[2];
    x = {static_cast<uint32_t>(p1 >> 32) ^ x[1] ^ k0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ x[3] ^ k1, static_cast<uint32_t>(p0)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return x;
}

uint64_t Philox::Bits(uint64_t index) const {
  const auto words = Block(index / 2);
  const int half = static_cast<int>(index % 2) * 2;
  return static_cast<uint64_t>(words[half + 1]) << 32 | words[half];
}

double Philox::Uniform(uint64_t index) const {
  return static_cast<double>(Bits(index) >> 11) * 0x1.0p-53;
}

uint32_t ThreefryWord(uint64_t key, uint32_t a, uint32_t b) {
  constexpr int kRotations[8] = {13, 15, 26, 6, 17, 29, 16, 24};
  const uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  const uint32_t keys[3] = {k0, k1, 0x1BD11BDAu ^ k0 ^ k1};
  uint32_t x = a + k0, y = b + k1;
  for (int round = 0; round < 13; ++round) {
    x += y;
    y = std::rotl(y, kRotations[round % 8]) ^ x;
    if (round % 4 != 3) continue;
    const uint32_t turn = round / 4 + 1;
    x += keys[turn % 3];
    y += keys[(turn + 1) % 3] + turn;
  }
  return x;
}

uint64_t SubStream(uint64_t stream, uint64_t word) {
  uint64_t x = stream + (word + 1) * 0x9E3779B97F4A7C15u;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
  x = (x ^ x >> 27) * 0x94D049BB133111EBu;
  return x ^ x >> 31;
}

namespace {

// Elements 2k and 2k + 1 of the standard normal stream.
std::array<double, 2> NormalPair(const Philox& philox, uint64_t pair) {
  const double u = 1.0 - philox.Uniform(2 * pair);  // in (0, 1]
  const double angle = 2 * std::numbers::pi * philox.Uniform(2 * pair + 1);
  const double radius = std::sqrt(-2 * std::log(u));
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

void FillFromHost(const at::Tensor& out, const Philox& philox, uint64_t first, double stddev) {
  constexpr int64_t kPiece = 1 << 22;
  const at::Tensor flat = out.view({-1});
  const at::Tensor buffer =
      at::empty({std::min(kPiece, flat.numel())}, at::TensorOptions(flat.scalar_type()));
  for (int64_t at = 0; at < flat.numel(); at += kPiece) {
    at::Tensor piece = buffer.narrow(0, 0, std::min(kPiece, flat.numel() - at));
    FillNormal(piece, philox, first + static_cast<uint64_t>(at), stddev);
    flat.narrow(0, at, piece.numel()).copy_(piece);
  }
}

}  // namespace

void FillNormal(at::Tensor& out, const Philox& philox, uint64_t first, double stddev) {
  SHOAL_CHECK(out.is_contiguous()) << "FillNormal needs contiguous memory";
  if (!out.is_cpu()) return FillFromHost(out, philox, first, stddev);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, out.scalar_type(), "FillNormal", [&] {
    scalar_t* data = out.mutable_data_ptr<scalar_t>();
    const uint64_t end = first + static_cast<uint64_t>(out.numel());
    for (uint64_t i = first; i < end;) {
      const auto pair = NormalPair(philox, i / 2);
      for (uint64_t k = i % 2; k < 2 && i < end; ++k, ++i) {
        data[i - first] = static_cast<scalar_t>(stddev * pair[k]);
      }
    }
  });
}

}  // namespace shoal
