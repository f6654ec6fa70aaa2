#include "trainer/federated/secret_sharing.h"

#include <sodium.h>

namespace shoal {
namespace {

static_assert(crypto_core_ed25519_SCALARBYTES == sizeof(Secret));

Secret Whole(uint32_t number) {
  Secret element{};
  for (int byte = 0; byte < 4; ++byte) element[byte] = static_cast<uint8_t>(number >> (8 * byte));
  return element;
}

Secret Multiply(const Secret& a, const Secret& b) {
  Secret product;
  crypto_core_ed25519_scalar_mul(product.data(), a.data(), b.data());
  return product;
}

Secret Add(const Secret& a, const Secret& b) {
  Secret sum;
  crypto_core_ed25519_scalar_add(sum.data(), a.data(), b.data());
  return sum;
}

Secret Subtract(const Secret& a, const Secret& b) {
  Secret difference;
  crypto_core_ed25519_scalar_sub(difference.data(), a.data(), b.data());
  return difference;
}

}  // namespace

Secret DeriveSecret(const std::array<uint8_t, 32>& entropy, uint64_t label) {
  // Twice the field's bits, reduced: uniform to 2^-259.
  std::array<uint8_t, crypto_core_ed25519_NONREDUCEDSCALARBYTES> wide;
  crypto_generichash(wide.data(), wide.size(), reinterpret_cast<const uint8_t*>(&label),
                     sizeof(label), entropy.data(), entropy.size());
  Secret secret;
  crypto_core_ed25519_scalar_reduce(secret.data(), wide.data());
  sodium_memzero(wide.data(), wide.size());
  return secret;
}

std::vector<SecretShare> SplitSecret(const Secret& secret, absl::Span<const uint32_t> points,
                                     int threshold, const std::array<uint8_t, 32>& entropy) {
  SHOAL_CHECK(threshold >= 1 && static_cast<size_t>(threshold) <= points.size())
      << "threshold " << threshold << " of " << points.size() << " shares";
  std::vector<Secret> coefficients = {secret};
  for (int power = 1; power < threshold; ++power) {
    coefficients.push_back(DeriveSecret(entropy, static_cast<uint64_t>(power)));
  }
  std::vector<SecretShare> shares;
  for (uint32_t point : points) {
    SHOAL_CHECK(point >= 1) << "the share at 0 is the secret";
    const Secret x = Whole(point);
    Secret value = coefficients.back();  // Horner
    for (int power = threshold - 2; power >= 0; --power) {
      value = Add(Multiply(value, x), coefficients[power]);
    }
    shares.push_back({.point = point, .value = value});
  }
  sodium_memzero(coefficients.data(), coefficients.size() * sizeof(Secret));
  return shares;
}

std::vector<Secret> ReconstructionCoefficients(absl::Span<const uint32_t> points) {
  std::vector<Secret> coefficients;
  for (size_t own = 0; own < points.size(); ++own) {
    Secret numerator = Whole(1), denominator = Whole(1);
    for (size_t other = 0; other < points.size(); ++other) {
      if (other == own) continue;
      numerator = Multiply(numerator, Whole(points[other]));
      denominator = Multiply(denominator, Subtract(Whole(points[other]), Whole(points[own])));
    }
    Secret inverse;
    SHOAL_CHECK(crypto_core_ed25519_scalar_invert(inverse.data(), denominator.data()) == 0)
        << "share points are not distinct";
    coefficients.push_back(Multiply(numerator, inverse));
  }
  return coefficients;
}

Secret CombineShares(absl::Span<const SecretShare> shares, absl::Span<const Secret> coefficients) {
  SHOAL_CHECK(shares.size() == coefficients.size() && !shares.empty())
      << shares.size() << " shares, " << coefficients.size() << " coefficients";
  Secret secret{};
  for (size_t k = 0; k < shares.size(); ++k) {
    secret = Add(secret, Multiply(shares[k].value, coefficients[k]));
  }
  return secret;
}

}  // namespace shoal
