#include "trainer/federated/secure_aggregation.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include <sodium.h>

#include "core/random.h"
#include "kernels/threads.h"

namespace shoal {
namespace {

// Labels of what is derived from a client's entropy.
enum EntropyLabel : uint64_t {
  kEncryption = 1,
  kMasking,
  kSelfMask,
  kSelfMaskShares,
  kMaskingShares
};

uint32_t SharePoint(int client) { return static_cast<uint32_t>(client) + 1; }

// Share holders of `client`'s secrets: its neighbours and itself.
std::vector<uint32_t> HolderPoints(const MaskGraph& graph, int client) {
  std::vector<uint32_t> points = {SharePoint(client)};
  for (int neighbour : graph.neighbours[client]) points.push_back(SharePoint(neighbour));
  return points;
}

constexpr size_t kPlainBytes = 2 * sizeof(Secret);

// The nonce of the message from `sender`: the pair's key is new each round and seals one message
// each way.
std::array<uint8_t, crypto_aead_xchacha20poly1305_ietf_NPUBBYTES> Nonce(int sender) {
  std::array<uint8_t, crypto_aead_xchacha20poly1305_ietf_NPUBBYTES> nonce{};
  std::memcpy(nonce.data(), &sender, sizeof(sender));
  return nonce;
}

std::string Seal(const MaskSeed& key, int sender, const Secret& self_mask,
                 const Secret& masking_secret) {
  std::array<uint8_t, kPlainBytes> plain;
  std::memcpy(plain.data(), self_mask.data(), sizeof(Secret));
  std::memcpy(plain.data() + sizeof(Secret), masking_secret.data(), sizeof(Secret));
  std::string sealed(kPlainBytes + crypto_aead_xchacha20poly1305_ietf_ABYTES, '\0');
  crypto_aead_xchacha20poly1305_ietf_encrypt(reinterpret_cast<uint8_t*>(sealed.data()), nullptr,
                                             plain.data(), plain.size(), nullptr, 0, nullptr,
                                             Nonce(sender).data(), key.data());
  sodium_memzero(plain.data(), plain.size());
  return sealed;
}

bool Open(const MaskSeed& key, int sender, const std::string& sealed, Secret& self_mask,
          Secret& masking_secret) {
  std::array<uint8_t, kPlainBytes> plain;
  if (sealed.size() != kPlainBytes + crypto_aead_xchacha20poly1305_ietf_ABYTES ||
      crypto_aead_xchacha20poly1305_ietf_decrypt(
          plain.data(), nullptr, nullptr, reinterpret_cast<const uint8_t*>(sealed.data()),
          sealed.size(), nullptr, 0, Nonce(sender).data(), key.data()) != 0) {
    return false;
  }
  std::memcpy(self_mask.data(), plain.data(), sizeof(Secret));
  std::memcpy(masking_secret.data(), plain.data() + sizeof(Secret), sizeof(Secret));
  sodium_memzero(plain.data(), plain.size());
  return true;
}

MaskSign PairSign(int client, int neighbour) {
  return neighbour > client ? MaskSign::kAdd : MaskSign::kSubtract;
}

MaskSign Opposite(MaskSign sign) {
  return sign == MaskSign::kAdd ? MaskSign::kSubtract : MaskSign::kAdd;
}

}  // namespace

absl::StatusOr<MaskGraph> MakeMaskGraph(const SecureAggregationOptions& options) {
  const int n = options.num_clients;
  if (options.neighbours < 0 || options.neighbours % 2 != 0 || options.threshold < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("secure aggregation with ", options.neighbours, " neighbours and threshold ",
                     options.threshold, ": neither may be negative, and neighbours must be even"));
  }
  if (n < 2) {
    return absl::FailedPreconditionError(absl::StrCat(
        "secure aggregation of ", n, " clients: with fewer than two the sum is an update"));
  }
  const bool complete = options.neighbours == 0 || options.neighbours >= n - 1;
  const int holders = (complete ? n - 1 : options.neighbours) + 1;
  const int majority = holders / 2 + 1, two_thirds = (2 * holders + 2) / 3;
  const int wanted = options.threshold > 0 ? options.threshold : complete ? two_thirds : majority;
  MaskGraph graph{
      .neighbours = {}, .threshold = std::max(wanted, majority), .round_seed = options.round_seed};
  if (graph.threshold > holders) {
    return absl::FailedPreconditionError(
        absl::StrCat("secure aggregation of ", n, " clients: a threshold of ", graph.threshold,
                     " shares, but there are ", holders, " of a secret"));
  }
  graph.neighbours.resize(n);
  if (complete) {
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < n; ++j) {
        if (j != i) graph.neighbours[i].push_back(j);
      }
    }
    return graph;
  }
  std::vector<std::pair<uint64_t, int>> ring;  // In the order of random numbers
  const Philox random(options.round_seed, StreamId("federated.mask_graph"));
  for (int i = 0; i < n; ++i) ring.emplace_back(random.Bits(static_cast<uint64_t>(i)), i);
  std::sort(ring.begin(), ring.end());
  for (int place = 0; place < n; ++place) {
    std::vector<int>& others = graph.neighbours[ring[place].second];
    for (int step = 1; step <= options.neighbours / 2; ++step) {
      others.push_back(ring[(place + step) % n].second);
      others.push_back(ring[(place + n - step) % n].second);
    }
    std::sort(others.begin(), others.end());
  }
  return graph;
}

SecureAggregationClient::SecureAggregationClient(std::shared_ptr<const MaskGraph> graph, int client,
                                                 const MaskSeed& entropy)
    : graph_(std::move(graph)),
      client_(client),
      entropy_(entropy),
      self_mask_(DeriveSecret(entropy, kSelfMask)),
      encryption_(KeyPairOf(DeriveSecret(entropy, kEncryption))),
      masking_(KeyPairOf(DeriveSecret(entropy, kMasking))) {
  SHOAL_CHECK(client >= 0 && client < graph_->num_clients()) << "client " << client;
}

SecureAggregationClient::~SecureAggregationClient() {
  sodium_memzero(entropy_.data(), sizeof(entropy_));
  sodium_memzero(self_mask_.data(), sizeof(self_mask_));
  sodium_memzero(encryption_.secret.data(), sizeof(Secret));
  sodium_memzero(masking_.secret.data(), sizeof(Secret));
  for (auto& [other, neighbour] : neighbours_) {
    sodium_memzero(neighbour.mask.data(), sizeof(MaskSeed));
    sodium_memzero(neighbour.seal_key.data(), sizeof(MaskSeed));
  }
  for (auto& [sender, pair] : held_) sodium_memzero(&pair, sizeof(pair));
}

KeyAdvertisement SecureAggregationClient::Advertise() const {
  return {.encryption_key = encryption_.public_key, .masking_key = masking_.public_key};
}

absl::StatusOr<std::map<int, std::string>> SecureAggregationClient::ShareSecrets(
    absl::Span<const KeyAdvertisement> advertisements) {
  SHOAL_CHECK(static_cast<int>(advertisements.size()) == graph_->num_clients())
      << advertisements.size() << " advertisements of " << graph_->num_clients() << " clients";
  const std::vector<uint32_t> points = HolderPoints(*graph_, client_);
  const std::vector<SecretShare> b =
      SplitSecret(self_mask_, points, graph_->threshold, DeriveSecret(entropy_, kSelfMaskShares));
  const std::vector<SecretShare> s = SplitSecret(masking_.secret, points, graph_->threshold,
                                                 DeriveSecret(entropy_, kMaskingShares));
  held_[client_] = {.self_mask = b[0], .masking_secret = s[0]};
  std::map<int, std::string> sealed;
  for (size_t k = 0; k < graph_->neighbours[client_].size(); ++k) {
    const int other = graph_->neighbours[client_][k];
    Neighbour& neighbour = neighbours_[other];
    SHOAL_ASSIGN_OR_RETURN(
        neighbour.mask, AgreeOnKey(masking_, advertisements[other].masking_key, graph_->round_seed,
                                   KeyPurpose::kPairwiseMask));
    SHOAL_ASSIGN_OR_RETURN(neighbour.seal_key,
                           AgreeOnKey(encryption_, advertisements[other].encryption_key,
                                      graph_->round_seed, KeyPurpose::kShares));
    sealed[other] = Seal(neighbour.seal_key, client_, b[k + 1].value, s[k + 1].value);
  }
  return sealed;
}

absl::Status SecureAggregationClient::Receive(const std::map<int, std::string>& sealed) {
  SHOAL_CHECK(held_.size() == 1) << "Receive comes once, after ShareSecrets";
  for (const auto& [sender, text] : sealed) {
    const auto neighbour = neighbours_.find(sender);
    SharePair pair;
    pair.self_mask.point = pair.masking_secret.point = SharePoint(client_);
    if (neighbour == neighbours_.end() || !Open(neighbour->second.seal_key, sender, text,
                                                pair.self_mask.value, pair.masking_secret.value)) {
      return absl::DataLossError(
          absl::StrCat("client ", client_, " cannot open the shares of client ", sender));
    }
    held_[sender] = pair;
    neighbour->second.shared = true;
  }
  if (static_cast<int>(held_.size()) < graph_->threshold) {
    return absl::FailedPreconditionError(
        absl::StrCat("secure aggregation: client ", client_, " and its neighbours that shared are ",
                     held_.size(), ", at least ", graph_->threshold, " are needed"));
  }
  return absl::OkStatus();
}

void SecureAggregationClient::AddMask(int64_t first, absl::Span<int64_t> values) const {
  SHOAL_CHECK(static_cast<int>(held_.size()) >= graph_->threshold) << "AddMask before Receive";
  ApplyMask(SelfMaskSeed(self_mask_, graph_->round_seed), MaskSign::kAdd, first, values);
  for (const auto& [other, neighbour] : neighbours_) {
    if (neighbour.shared) ApplyMask(neighbour.mask, PairSign(client_, other), first, values);
  }
}

absl::StatusOr<RevealedShares> SecureAggregationClient::Reveal(const std::vector<bool>& survived) {
  SHOAL_CHECK(static_cast<int>(survived.size()) == graph_->num_clients())
      << survived.size() << " marks for " << graph_->num_clients() << " clients";
  if (!revealed_for_.empty() && revealed_for_ != survived) {
    return absl::FailedPreconditionError(absl::StrCat(
        "client ", client_, " is asked for shares of other survivors than before: it refuses"));
  }
  RevealedShares revealed;
  for (const auto& [sender, pair] : held_) {
    if (survived[sender]) {
      revealed.self_masks[sender] = pair.self_mask;
    } else {
      revealed.masking_secrets[sender] = pair.masking_secret;
    }
  }
  if (static_cast<int>(revealed.self_masks.size()) < graph_->threshold) {
    return absl::FailedPreconditionError(absl::StrCat(
        "secure aggregation: of client ", client_, " and its neighbours ",
        revealed.self_masks.size(), " survived, at least ", graph_->threshold, " are needed"));
  }
  revealed_for_ = survived;
  return revealed;
}

namespace {

// Reconstructs secrets, keeping the coefficients of the last set of share holders: without
// `neighbours` all secrets have the same.
class Reconstructor {
 public:
  explicit Reconstructor(int threshold) : threshold_(threshold) {}

  // `what` of `client` out of the first `threshold` of `shares`.
  absl::StatusOr<Secret> Reconstruct(absl::string_view what, int client,
                                     const std::vector<SecretShare>& shares) {
    if (static_cast<int>(shares.size()) < threshold_) {
      return absl::FailedPreconditionError(absl::StrCat(
          "secure aggregation: the ", what, " of client ", client, " needs ", threshold_,
          " shares, ", shares.size(), " came: too many clients dropped out"));
    }
    std::vector<uint32_t> points;
    for (int k = 0; k < threshold_; ++k) points.push_back(shares[k].point);
    if (points != points_) {
      coefficients_ = ReconstructionCoefficients(points);
      points_ = std::move(points);
    }
    return CombineShares(absl::MakeConstSpan(shares).first(threshold_), coefficients_);
  }

 private:
  int threshold_;
  std::vector<uint32_t> points_;
  std::vector<Secret> coefficients_;
};

}  // namespace

absl::StatusOr<MaskRemoval> ReconstructMasks(const SecureAggregationView& view) {
  const MaskGraph& graph = *view.graph;
  const int n = graph.num_clients();
  std::vector<std::vector<SecretShare>> self_masks(n), masking_secrets(n);  // [client]
  for (const auto& [holder, revealed] : view.revealed) {
    for (const auto& [client, share] : revealed.self_masks) self_masks[client].push_back(share);
    for (const auto& [client, share] : revealed.masking_secrets) {
      masking_secrets[client].push_back(share);
    }
  }
  Reconstructor reconstructor(graph.threshold);
  MaskRemoval removal;
  for (int client = 0; client < n; ++client) {
    if (!view.shared[client]) continue;  // In nobody's masks
    if (view.survived[client]) {
      SHOAL_ASSIGN_OR_RETURN(const Secret secret,
                             reconstructor.Reconstruct("self-mask", client, self_masks[client]));
      removal.masks_.push_back(
          {.seed = SelfMaskSeed(secret, graph.round_seed), .sign = MaskSign::kSubtract});
      continue;
    }
    std::vector<int> masked_with_it;
    for (int neighbour : graph.neighbours[client]) {
      if (view.survived[neighbour]) masked_with_it.push_back(neighbour);
    }
    if (masked_with_it.empty()) continue;
    SHOAL_ASSIGN_OR_RETURN(const Secret secret, reconstructor.Reconstruct("masking secret", client,
                                                                          masking_secrets[client]));
    const KeyPair pair = KeyPairOf(secret);
    if (pair.public_key != view.advertisements[client].masking_key) {
      return absl::DataLossError(absl::StrCat("secure aggregation: the shares of client ", client,
                                              "'s masking secret do not give its key"));
    }
    for (int neighbour : masked_with_it) {
      SHOAL_ASSIGN_OR_RETURN(const MaskSeed seed,
                             AgreeOnKey(pair, view.advertisements[neighbour].masking_key,
                                        graph.round_seed, KeyPurpose::kPairwiseMask));
      removal.masks_.push_back({.seed = seed, .sign = Opposite(PairSign(neighbour, client))});
    }
  }
  return removal;
}

void MaskRemoval::RemoveFrom(int64_t first, absl::Span<int64_t> sum) const {
  constexpr int64_t kChunk = 1 << 15;  // Stays in the second-level cache under all masks
  ParallelFor(static_cast<int64_t>(sum.size()), kChunk, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; at += kChunk) {
      const absl::Span<int64_t> chunk = sum.subspan(at, std::min(kChunk, end - at));
      for (const Mask& mask : masks_) ApplyMask(mask.seed, mask.sign, first + at, chunk);
    }
  });
}

absl::StatusOr<SecureAggregationRound> SecureAggregationRound::Start(
    const SecureAggregationOptions& options, const MaskSeed& secret) {
  SecureAggregationRound round;
  SHOAL_ASSIGN_OR_RETURN(MaskGraph graph, MakeMaskGraph(options));
  round.graph_ = std::make_shared<const MaskGraph>(std::move(graph));
  const int n = options.num_clients;
  round.clients_.reserve(n);
  for (int client = 0; client < n; ++client) {
    round.clients_.emplace_back(round.graph_, client,
                                DeriveSecret(secret, static_cast<uint64_t>(client)));
    round.advertisements_.push_back(round.clients_.back().Advertise());
  }
  std::vector<absl::StatusOr<std::map<int, std::string>>> sent(n);
  ParallelFor(n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      sent[k] = round.clients_[k].ShareSecrets(round.advertisements_);
    }
  });
  std::vector<std::map<int, std::string>> inboxes(n);
  for (int client = 0; client < n; ++client) {
    SHOAL_RETURN_IF_ERROR(sent[client].status());
    // Its own keys up, those of its neighbours down; shares up and down.
    const int64_t degree = static_cast<int64_t>(sent[client]->size());
    round.protocol_bytes_ += (1 + degree) * static_cast<int64_t>(sizeof(KeyAdvertisement));
    for (auto& [receiver, sealed] : *sent[client]) {
      round.protocol_bytes_ += 2 * static_cast<int64_t>(sealed.size());
      inboxes[receiver][client] = std::move(sealed);
    }
  }
  for (int client = 0; client < n; ++client) {
    SHOAL_RETURN_IF_ERROR(round.clients_[client].Receive(inboxes[client]));
  }
  return round;
}

void SecureAggregationRound::AddMask(int client, int64_t first, absl::Span<int64_t> values) const {
  SHOAL_CHECK(client >= 0 && client < graph_->num_clients()) << "client " << client;
  clients_[client].AddMask(first, values);
}

absl::StatusOr<MaskRemoval> SecureAggregationRound::Finish(const std::vector<bool>& survived) {
  SecureAggregationView view{.graph = graph_.get(),
                             .advertisements = advertisements_,
                             .shared = std::vector<bool>(clients_.size(), true),
                             .survived = survived,
                             .revealed = {}};
  for (size_t client = 0; client < clients_.size(); ++client) {
    if (!survived[client]) continue;
    absl::StatusOr<RevealedShares> revealed = clients_[client].Reveal(survived);
    // One that refuses for lack of survivors is as good as gone; the others may be enough.
    if (!revealed.ok()) continue;
    protocol_bytes_ += static_cast<int64_t>(
        (revealed->self_masks.size() + revealed->masking_secrets.size()) * sizeof(SecretShare));
    view.revealed[static_cast<int>(client)] = *std::move(revealed);
  }
  return ReconstructMasks(view);
}

MaskSeed SimulationSecret(uint64_t seed, uint64_t round) {
  MaskSeed both{};
  std::memcpy(both.data(), &seed, sizeof(seed));
  std::memcpy(both.data() + sizeof(seed), &round, sizeof(round));
  return DeriveSecret(both, StreamId("federated.secure_aggregation"));
}

}  // namespace shoal
