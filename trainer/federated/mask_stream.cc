#include "trainer/federated/mask_stream.h"

#include <algorithm>
#include <cstring>

#include <sodium.h>

namespace shoal {
namespace {

constexpr int64_t kBlockElements = 8;      // Of ChaCha20, 64 bytes
constexpr int64_t kBufferElements = 2048;  // In the first-level cache

// Picks libsodium's fastest functions for this machine, once.
void InitialiseSodium() {
  static const bool done = sodium_init() >= 0;
  SHOAL_CHECK(done) << "libsodium cannot be used here";
}

PublicKey X25519Secret(const Secret& secret) {
  PublicKey key;
  crypto_generichash(key.data(), key.size(), secret.data(), secret.size(), nullptr, 0);
  return key;
}

// 32 bytes of BLAKE2b over parts of fixed sizes.
class Hash {
 public:
  Hash() { crypto_generichash_init(&state_, nullptr, 0, sizeof(MaskSeed)); }
  template <typename T>
  Hash& Add(const T& part) {
    crypto_generichash_update(&state_, reinterpret_cast<const uint8_t*>(&part), sizeof(part));
    return *this;
  }
  MaskSeed Finish() {
    MaskSeed digest;
    crypto_generichash_final(&state_, digest.data(), digest.size());
    sodium_memzero(&state_, sizeof(state_));
    return digest;
  }

 private:
  crypto_generichash_state state_;
};

}  // namespace

void ApplyMask(const MaskSeed& seed, MaskSign sign, int64_t first, absl::Span<int64_t> values) {
  InitialiseSodium();
  alignas(64) static constexpr std::array<int64_t, kBufferElements> kZeros{};
  alignas(64) std::array<int64_t, kBufferElements> stream;
  static constexpr std::array<uint8_t, crypto_stream_chacha20_NONCEBYTES> kNonce{};
  SHOAL_CHECK(first >= 0) << "mask from element " << first;
  const int64_t count = static_cast<int64_t>(values.size());
  for (int64_t at = 0; at < count;) {
    const int64_t skip = (first + at) % kBlockElements;
    const int64_t size = std::min(kBufferElements - skip, count - at);
    const uint64_t block = static_cast<uint64_t>((first + at) / kBlockElements);
    crypto_stream_chacha20_xor_ic(
        reinterpret_cast<uint8_t*>(stream.data()), reinterpret_cast<const uint8_t*>(kZeros.data()),
        static_cast<uint64_t>(skip + size) * sizeof(int64_t), kNonce.data(), block, seed.data());
    int64_t* out = values.data() + at;
    const int64_t* mask = stream.data() + skip;
    // Unsigned, since these sums are meant to wrap.
    if (sign == MaskSign::kAdd) {
      for (int64_t k = 0; k < size; ++k) {
        out[k] =
            static_cast<int64_t>(static_cast<uint64_t>(out[k]) + static_cast<uint64_t>(mask[k]));
      }
    } else {
      for (int64_t k = 0; k < size; ++k) {
        out[k] =
            static_cast<int64_t>(static_cast<uint64_t>(out[k]) - static_cast<uint64_t>(mask[k]));
      }
    }
    at += size;
  }
}

KeyPair KeyPairOf(const Secret& secret) {
  InitialiseSodium();
  KeyPair pair{.secret = secret, .public_key = {}};
  PublicKey key = X25519Secret(secret);
  crypto_scalarmult_curve25519_base(pair.public_key.data(), key.data());
  sodium_memzero(key.data(), key.size());
  return pair;
}

absl::StatusOr<MaskSeed> AgreeOnKey(const KeyPair& mine, const PublicKey& theirs,
                                    uint64_t round_seed, KeyPurpose purpose) {
  InitialiseSodium();
  PublicKey key = X25519Secret(mine.secret), shared;
  const bool agreed = crypto_scalarmult_curve25519(shared.data(), key.data(), theirs.data()) == 0;
  sodium_memzero(key.data(), key.size());
  if (!agreed) return absl::InvalidArgumentError("a public key is a point of low order");
  const auto [smaller, larger] = std::minmax(mine.public_key, theirs);
  MaskSeed seed = Hash().Add(shared).Add(smaller).Add(larger).Add(round_seed).Add(purpose).Finish();
  sodium_memzero(shared.data(), shared.size());
  return seed;
}

MaskSeed SelfMaskSeed(const Secret& self_mask, uint64_t round_seed) {
  return Hash().Add(self_mask).Add(round_seed).Add(KeyPurpose::kSelfMask).Finish();
}

}  // namespace shoal
