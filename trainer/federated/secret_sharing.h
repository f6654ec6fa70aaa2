// Shamir's secret sharing (Shamir 1979): a secret is the constant term of a random polynomial of
// degree threshold - 1 over a prime field, a share its value at a small whole number; any
// `threshold` shares give it back, fewer say nothing about it.
//
// The field is that of the integers modulo 2^252 + 27742317777372353535851937790883648493, the
// order of the edwards25519 group, whose constant-time arithmetic libsodium brings. Of Debian's
// libraries libgfshare shares bytes over GF(2^8) among at most 255 with a generator of its own,
// Botan and Crypto++ over GF(2^8) and GF(2^32) at megabytes of code; none takes a prime field, so
// the twenty lines on top of libsodium's field are here.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"

#include "core/status.h"

namespace shoal {

// A field element, little endian, reduced.
using Secret = std::array<uint8_t, 32>;

struct SecretShare {
  uint32_t point = 0;  // x >= 1
  Secret value;        // the polynomial there
};

// A uniform field element out of 32 secret bytes and a label: other labels give independent ones.
Secret DeriveSecret(const std::array<uint8_t, 32>& entropy, uint64_t label);

// Shares of `secret` at `points` (distinct, >= 1). The polynomial's other coefficients are derived
// from `entropy`, which must serve no other secret. 1 <= threshold <= points.size().
std::vector<SecretShare> SplitSecret(const Secret& secret, absl::Span<const uint32_t> points,
                                     int threshold, const std::array<uint8_t, 32>& entropy);

// The Lagrange coefficients at 0 of `points`: secret = sum_k coefficient[k] * value at points[k].
// Computed once for many secrets with the same share holders.
std::vector<Secret> ReconstructionCoefficients(absl::Span<const uint32_t> points);

// The secret of which `shares` are shares at the points that gave `coefficients`.
Secret CombineShares(absl::Span<const SecretShare> shares, absl::Span<const Secret> coefficients);

}  // namespace shoal
