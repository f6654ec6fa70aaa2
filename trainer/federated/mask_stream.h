// The pseudo-random masks of secure aggregation, and the keys that two clients agree on for them.
#pragma once

#include <array>
#include <cstdint>

#include "absl/types/span.h"

#include "core/status.h"
#include "trainer/federated/secret_sharing.h"

namespace shoal {

using MaskSeed = std::array<uint8_t, 32>;
using PublicKey = std::array<uint8_t, 32>;

enum class MaskSign { kAdd, kSubtract };

// values[k] += or -= element first + k of the stream of uniform 64-bit integers that ChaCha20 (RFC
// 8439's function with a 64-bit block counter, nonce 0) makes of `seed`, little endian, modulo
// 2^64. So a model may be masked in slices, on different ranks. Thread safe; runs on the calling
// thread.
void ApplyMask(const MaskSeed& seed, MaskSign sign, int64_t first, absl::Span<int64_t> values);

// What two clients agree on a key for; other purposes give unrelated keys.
enum class KeyPurpose : uint64_t { kPairwiseMask = 1, kSelfMask = 2, kShares = 3 };

// An X25519 key pair (RFC 7748) made of a secret that can be shared (secret_sharing.h).
struct KeyPair {
  Secret secret;
  PublicKey public_key;
};
KeyPair KeyPairOf(const Secret& secret);

// BLAKE2b of the agreement of both, their public keys, `round_seed` and `purpose`: the same for
// (a's pair, b's public key) and (b's pair, a's public key). InvalidArgument: `theirs` is no usable
// key (a point of low order).
absl::StatusOr<MaskSeed> AgreeOnKey(const KeyPair& mine, const PublicKey& theirs,
                                    uint64_t round_seed, KeyPurpose purpose);

// The seed of a client's mask on itself.
MaskSeed SelfMaskSeed(const Secret& self_mask, uint64_t round_seed);

}  // namespace shoal
