// The server learns the sum of the clients' fixed-point updates and no single one (Bonawitz et al.
// 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning", protocol for an
// honest but curious server; with `neighbours`, Bell et al. 2020's sparse graph). Played out here
// among virtual clients of one simulation; not audited for use between real parties.
//
// All arithmetic is on int64 modulo 2^64, so masks cancel exactly: the unmasked sum has the bits of
// the plain one, whoever drops out.
//
//   0  client i makes two key pairs and sends the public halves               Advertise
//   1  i splits its self-mask seed b_i and its masking secret s_i into shares,
//      one a neighbour, each encrypted for that neighbour                      ShareSecrets
//   2  i sends x_i + PRG(b_i) + sum_{j > i} PRG(s_ij) - sum_{j < i} PRG(s_ij)  AddMask
//      over its neighbours j that shared
//   3  told who survived, i sends its share of b_j of each survivor, or of s_j
//      of each that dropped, never of both                                     Reveal
//   4  the server reconstructs those and takes the masks off the sum           Unmask, RemoveFrom
//
// Key agreement is X25519, PRG ChaCha20, share encryption XChaCha20-Poly1305, hashing BLAKE2b, all
// of libsodium; shares are in secret_sharing.h.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/types/span.h"

#include "core/status.h"
#include "trainer/federated/secret_sharing.h"

namespace shoal {

using MaskSeed = std::array<uint8_t, 32>;
using PublicKey = std::array<uint8_t, 32>;

enum class MaskSign { kAdd, kSubtract };

// values[k] +-= element first + k of the stream of uniform 64-bit integers that ChaCha20 makes of
// `seed`, modulo 2^64. So a model may be masked in slices, on different ranks. Thread safe.
void ApplyMask(const MaskSeed& seed, MaskSign sign, int64_t first, absl::Span<int64_t> values);

// Clients are numbered 0 ... num_clients - 1 within the round's cohort.
struct SecureAggregationOptions {
  int num_clients = 0;
  // Shares that reconstruct a secret; 0: two thirds of those that hold shares, rounded up. At least
  // more than half, so that the server cannot gather both secrets of one client.
  int threshold = 0;
  // Each client masks against this many others (even, a random ring by round_seed) instead of all;
  // 0: all. Bell et al. 2020 show a multiple of log n to suffice.
  int neighbours = 0;
  uint64_t round_seed = 0;  // Public: the graph, and the label of all keys. New each round
};

// Who shares and masks with whom, and how many shares it takes. Every party computes the same.
struct MaskGraph {
  std::vector<std::vector<int>> neighbours;  // [client], increasing, without the client
  int threshold = 0;
  uint64_t round_seed = 0;

  int num_clients() const { return static_cast<int>(neighbours.size()); }
};

// InvalidArgument: fewer than two clients, `neighbours` odd or not below num_clients, a threshold
// that is not more than half of the share holders or more than all of them.
absl::StatusOr<MaskGraph> MakeMaskGraph(const SecureAggregationOptions& options);

struct KeyAdvertisement {
  PublicKey encryption_key;  // of c_i: for shares
  PublicKey masking_key;     // of s_i: for pairwise masks
};

// [sender] -> the two shares for one receiver, which only he can open
using SealedShares = std::map<int, std::string>;

// The secret state of one client. Not copyable by accident: moves only.
class SecureAggregationClient {
 public:
  // `entropy`: 32 secret bytes of this client and round; everything secret is derived from them, so
  // that a simulation can be repeated.
  SecureAggregationClient(const MaskGraph& graph, int client, const MaskSeed& entropy);
  ~SecureAggregationClient();  // Wipes secrets
  SecureAggregationClient(SecureAggregationClient&&) = default;
  SecureAggregationClient(const SecureAggregationClient&) = delete;

  const KeyAdvertisement& Advertise() const { return advertisement_; }

  // all: [client]. Returns receiver -> sealed shares, for each neighbour, and keeps the share that
  // is for this client itself. Agrees on keys with every neighbour.
  absl::StatusOr<std::map<int, std::string>> ShareSecrets(absl::Span<const KeyAdvertisement> all);
  // What the neighbours sealed for this client. Those that sent nothing dropped before masking and
  // are left out of the masks. FailedPrecondition: fewer than threshold shared (self included);
  // DataLoss: a share that does not open.
  absl::Status Receive(const SealedShares& shares);

  // values (elements [first, first + size) of the update, in fixed point) += this client's masks.
  void AddMask(int64_t first, absl::Span<int64_t> values) const;

  // survivors: [client] whether its masked update reached the server. Once a round: a second call
  // with other survivors is refused (FailedPrecondition), since it would give both secrets away.
  struct Revealed {
    std::map<int, SecretShare> self_masks;       // survivor -> share of b
    std::map<int, SecretShare> masking_secrets;  // dropped -> share of s
  };
  absl::StatusOr<Revealed> Reveal(const std::vector<bool>& survivors);

 private:
  struct Peer {
    MaskSeed mask;            // s_ij's seed
    MaskSeed encryption_key;  // for shares, both ways
  };

  const MaskGraph* graph_;
  int client_;
  MaskSeed entropy_;
  Secret self_mask_;       // b
  Secret masking_secret_;  // s
  KeyAdvertisement advertisement_;
  std::map<int, Peer> peers_;            // all neighbours
  std::map<int, SecretShare> b_shares_;  // [sender]: shares this client holds, its own included
  std::map<int, SecretShare> s_shares_;
  std::vector<bool> revealed_for_;
};

// The masks that are left on the sum of the survivors' masked updates.
class MaskRemoval {
 public:
  // sum (elements [first, first + size) of the survivors' masked updates added up) -= all masks.
  void RemoveFrom(int64_t first, absl::Span<int64_t> sum) const;

 private:
  friend absl::StatusOr<MaskRemoval> ReconstructMasks(
      const MaskGraph& graph, absl::Span<const KeyAdvertisement> all,
      const std::vector<bool>& survivors,
      const std::map<int, SecureAggregationClient::Revealed>& revealed);
  struct Mask {
    MaskSeed seed;
    MaskSign sign;  // That takes it off
  };
  std::vector<Mask> masks_;
};

// The server's last step. revealed: survivor -> its answer (some may be missing).
// FailedPrecondition: too few answered to reconstruct a secret, with the numbers.
absl::StatusOr<MaskRemoval> ReconstructMasks(
    const MaskGraph& graph, absl::Span<const KeyAdvertisement> all,
    const std::vector<bool>& survivors,
    const std::map<int, SecureAggregationClient::Revealed>& revealed);

// All parties of one round in one process: what the federated engine uses. A function of its
// arguments: every rank of a run that makes one has the same.
//
//   SecureAggregationRound round = *SecureAggregationRound::Start(options, secret_seed);
//   on the client's rank:  round.AddMask(client, 0, fixed_point_update); sums +=
//   fixed_point_update; all ranks:             all-reduce of sums, int64 MaskRemoval masks =
//   *round.Finish(survivors);   masks.RemoveFrom(0, sums);
class SecureAggregationRound {
 public:
  // Steps 0 and 1. secret_seed: 32 bytes known to no one but the simulation.
  static absl::StatusOr<SecureAggregationRound> Start(const SecureAggregationOptions& options,
                                                      const MaskSeed& secret_seed);
  // Step 2 of `client`. Thread safe.
  void AddMask(int client, int64_t first, absl::Span<int64_t> values) const;
  // Steps 3 and 4. FailedPrecondition: too few survivors.
  absl::StatusOr<MaskRemoval> Finish(const std::vector<bool>& survivors);

  // Bytes that a client sends and receives beside its update, on average over the cohort.
  int64_t protocol_bytes_per_client() const { return protocol_bytes_ / graph_->num_clients(); }

 private:
  std::unique_ptr<MaskGraph> graph_;  // At an address that clients keep
  std::vector<SecureAggregationClient> clients_;
  std::vector<KeyAdvertisement> advertisements_;
  int64_t protocol_bytes_ = 0;
};

// 32 bytes for SecureAggregationRound out of a run's seed: a function of (seed, round).
MaskSeed SimulationSecret(uint64_t seed, uint64_t round);

}  // namespace shoal
