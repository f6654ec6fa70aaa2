// The server learns the sum of the clients' fixed-point updates and no single one (Bonawitz et al.
// 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning", the protocol
// against an honest but curious server; with `neighbours`, the sparse graph of Bell et al. 2020).
// Played out here among virtual clients of one simulation; not audited for use between real
// parties.
//
// All arithmetic is on int64 modulo 2^64, so masks cancel exactly: the unmasked sum has the bits of
// the plain one, whoever drops out.
//
//   0  client i makes key pairs of secrets c_i and s_i, sends the public halves  Advertise
//   1  i splits its self-mask secret b_i and s_i into shares, one a neighbour and
//      one for itself, each sealed for its holder under c                         ShareSecrets
//   2  i sends x_i + PRG(b_i) + sum_{j > i} PRG(s_ij) - sum_{j < i} PRG(s_ij)     Receive, AddMask
//      over its neighbours j that shared
//   3  told who survived, i sends its share of b_j of each survivor, or of s_j
//      of each that dropped after sharing, never of both                          Reveal
//   4  the server reconstructs those and takes the masks off the sum              ReconstructMasks
//
// Key agreement is X25519, the PRG ChaCha20, sealing XChaCha20-Poly1305, hashing BLAKE2b, all of
// libsodium (mask_stream.h); shares are in secret_sharing.h.
//
// Cost for n clients with k neighbours and P elements: a client agrees on 2 k keys and expands k +
// 1 masks of P, the server expands one a survivor and up to k a dropout. One core takes
// 35 us a key and 3.5 ms a million elements of a mask (bench/federated_functions_bench.cc).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/types/span.h"

#include "core/status.h"
#include "trainer/federated/mask_stream.h"
#include "trainer/federated/secret_sharing.h"

namespace shoal {

// Clients are numbered 0 ... num_clients - 1 within the round's cohort.
struct SecureAggregationOptions {
  int num_clients = 0;
  // Shares that reconstruct a secret. 0: two thirds of those that exist, rounded up, so that a
  // third of the cohort may drop out, or with `neighbours` just more than half. Never fewer than
  // that, or the server could gather both secrets of a client.
  int threshold = 0;
  // Each client shares and masks with this many others (even; neighbours on a ring in random order)
  // instead of all, 0: all. The cost no longer grows with the square of the cohort, but a
  // neighbourhood may by chance lose more than its share, and then the round fails: among 1,000
  // clients of which a tenth drops out, less than once in a million rounds with 34 (22 at 5 %, 80
  // at 20 %).
  int neighbours = 0;
  uint64_t round_seed = 0;  // Public: the ring, and a label in all keys. New each round
};

// Who shares and masks with whom, and how many shares it takes. Every party computes the same.
struct MaskGraph {
  std::vector<std::vector<int>> neighbours;  // [client], increasing, without the client
  int threshold = 0;
  uint64_t round_seed = 0;

  int num_clients() const { return static_cast<int>(neighbours.size()); }
};

// InvalidArgument: options that suit no cohort: a negative number, odd neighbours.
// FailedPrecondition: this cohort is too small, fewer than two clients or fewer shares than
// `threshold`. A cohort drawn by coins may be: its round is lost, which need not end the run.
absl::StatusOr<MaskGraph> MakeMaskGraph(const SecureAggregationOptions& options);

struct KeyAdvertisement {
  PublicKey encryption_key;  // Of c
  PublicKey masking_key;     // Of s
};

// What a client tells the server in the end, by whose secrets the shares are of.
struct RevealedShares {
  std::map<int, SecretShare> self_masks;       // Survivor -> share of b
  std::map<int, SecretShare> masking_secrets;  // Dropped -> share of s
};

// One client and its secrets. Calls in the order of the steps above; AddMask any number of times
// and from any thread.
class SecureAggregationClient {
 public:
  // `entropy`: 32 secret bytes of this client and round, of which all its secrets are derived, so
  // that a simulation can be repeated.
  SecureAggregationClient(std::shared_ptr<const MaskGraph> graph, int client,
                          const MaskSeed& entropy);
  ~SecureAggregationClient();  // Wipes the secrets
  SecureAggregationClient(SecureAggregationClient&&) = default;
  SecureAggregationClient(const SecureAggregationClient&) = delete;

  KeyAdvertisement Advertise() const;

  // advertisements: [client]. Agrees on keys with the neighbours; returns neighbour -> both shares
  // for it, sealed.
  absl::StatusOr<std::map<int, std::string>> ShareSecrets(
      absl::Span<const KeyAdvertisement> advertisements);

  // sealed: neighbour -> what it sealed for this client. A neighbour that is missing dropped before
  // sharing and is left out of the masks. FailedPrecondition: fewer than threshold shared, this
  // client among them; DataLoss: a seal that is broken.
  absl::Status Receive(const std::map<int, std::string>& sealed);

  // values += this client's masks; values are elements [first, first + size) of its update.
  void AddMask(int64_t first, absl::Span<int64_t> values) const;

  // survived: [client] whether its masked update reached the server. FailedPrecondition: fewer than
  // threshold of the share holders that this client knows survived; or it answered for other
  // survivors before, and both answers together would give a client's two secrets away.
  absl::StatusOr<RevealedShares> Reveal(const std::vector<bool>& survived);

 private:
  struct Neighbour {
    MaskSeed mask;      // Seed of PRG(s_ij)
    MaskSeed seal_key;  // Both ways
    bool shared = false;
  };
  struct SharePair {
    SecretShare self_mask, masking_secret;
  };

  std::shared_ptr<const MaskGraph> graph_;
  int client_;
  MaskSeed entropy_;
  Secret self_mask_;  // b
  KeyPair encryption_, masking_;
  std::map<int, Neighbour> neighbours_;
  std::map<int, SharePair> held_;  // By whose secrets they are of; its own among them
  std::vector<bool> revealed_for_;
};

// What the server knows at the end of a round.
struct SecureAggregationView {
  const MaskGraph* graph = nullptr;
  absl::Span<const KeyAdvertisement> advertisements;  // [client]
  std::vector<bool> shared;                           // [client] took part in step 1
  std::vector<bool> survived;                         // [client] its masked update is in the sum
  std::map<int, RevealedShares> revealed;             // Survivor -> its answer, as far as it came
};

// The masks that are left on the sum of the survivors' updates.
class MaskRemoval {
 public:
  // Takes them off elements [first, first + size) of the sum.
  void RemoveFrom(int64_t first, absl::Span<int64_t> sum) const;

 private:
  friend absl::StatusOr<MaskRemoval> ReconstructMasks(const SecureAggregationView& view);
  struct Mask {
    MaskSeed seed;
    MaskSign sign;  // That takes it off
  };
  std::vector<Mask> masks_;
};

// FailedPrecondition, with the numbers: too few shares of a secret came. DataLoss: shares that give
// another key than the client advertised.
absl::StatusOr<MaskRemoval> ReconstructMasks(const SecureAggregationView& view);

// All parties of a round in one process; what a simulation uses. A function of its arguments: every
// rank that makes one has the same.
//
//   SHOAL_ASSIGN_OR_RETURN(auto round, SecureAggregationRound::Start(options, secret));
//   round.AddMask(client, 0, update);      on the client's rank, on its own fixed-point update;
//                                          then sums += update, and the sum over ranks
//   SHOAL_ASSIGN_OR_RETURN(MaskRemoval masks, round.Finish(survived));
//   masks.RemoveFrom(0, sums);             survived: exactly those whose updates are in sums
class SecureAggregationRound {
 public:
  // Steps 0 and 1, all clients sharing. `secret`: see SimulationSecret. Errors: MakeMaskGraph's.
  static absl::StatusOr<SecureAggregationRound> Start(const SecureAggregationOptions& options,
                                                      const MaskSeed& secret);
  // Step 2 of `client`. Thread safe. In masked sums int64 must wrap: add as uint64, or with ATen.
  void AddMask(int client, int64_t first, absl::Span<int64_t> values) const;
  // Steps 3 and 4. FailedPrecondition: too few survivors.
  absl::StatusOr<MaskRemoval> Finish(const std::vector<bool>& survived);

  // Bytes that all clients have sent and received so far beside their updates.
  int64_t protocol_bytes() const { return protocol_bytes_; }

 private:
  std::shared_ptr<const MaskGraph> graph_;
  std::vector<SecureAggregationClient> clients_;
  std::vector<KeyAdvertisement> advertisements_;  // [client]
  int64_t protocol_bytes_ = 0;
};

// The 32 secret bytes of a simulated round: a function of a run's seed and the round.
MaskSeed SimulationSecret(uint64_t seed, uint64_t round);

}  // namespace shoal
