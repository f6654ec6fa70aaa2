#include "trainer/federated/secure_aggregation.h"

#include <bit>
#include <map>
#include <set>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/random.h"

namespace shoal {
namespace {

using Values = std::vector<int64_t>;

MaskSeed SeedOf(uint8_t byte) {
  MaskSeed seed{};
  seed[0] = byte;
  return seed;
}

void AddTo(Values& sum, const Values& update) {
  for (size_t k = 0; k < sum.size(); ++k) {
    sum[k] = static_cast<int64_t>(static_cast<uint64_t>(sum[k]) + static_cast<uint64_t>(update[k]));
  }
}

Values UpdateOf(int client, int64_t size) {
  Values update;
  for (int64_t k = 0; k < size; ++k) {
    update.push_back(static_cast<int64_t>(Philox(31, client).Bits(k)) >> 8);
  }
  return update;
}

TEST(MaskStream, IsChaCha20) {
  // RFC 8439, appendix A.1, test vectors 1 and 2: key 0, nonce 0, blocks 0 and 1.
  Values stream(16, 0);
  ApplyMask({}, MaskSign::kAdd, 0, absl::MakeSpan(stream));
  EXPECT_EQ(static_cast<uint64_t>(stream[0]), 0x903df1a0ade0b876u);
  EXPECT_EQ(static_cast<uint64_t>(stream[1]), 0x28bd8653e56a5d40u);
  EXPECT_EQ(static_cast<uint64_t>(stream[8]), 0x7a385155bee7079fu);
}

TEST(MaskStream, SlicesAndSignsCancel) {
  const int64_t size = 10'000;
  Values whole(size, 5);
  ApplyMask(SeedOf(1), MaskSign::kAdd, 3, absl::MakeSpan(whole));
  EXPECT_NE(whole, Values(size, 5));
  for (int64_t at = 0; at < size; at += 777) {
    const auto slice = absl::MakeSpan(whole).subspan(at, 777);
    ApplyMask(SeedOf(1), MaskSign::kSubtract, 3 + at, slice);
  }
  EXPECT_EQ(whole, Values(size, 5));
}

TEST(MaskStream, PartnersAgreeOnAKeyOfTheirRoundAndPurpose) {
  const KeyPair a = KeyPairOf(DeriveSecret(SeedOf(1), 1)),
                b = KeyPairOf(DeriveSecret(SeedOf(2), 1));
  const MaskSeed key = *AgreeOnKey(a, b.public_key, 7, KeyPurpose::kPairwiseMask);
  EXPECT_EQ(key, *AgreeOnKey(b, a.public_key, 7, KeyPurpose::kPairwiseMask));
  EXPECT_NE(key, *AgreeOnKey(b, a.public_key, 8, KeyPurpose::kPairwiseMask));
  EXPECT_NE(key, *AgreeOnKey(b, a.public_key, 7, KeyPurpose::kShares));
  EXPECT_EQ(AgreeOnKey(a, PublicKey{}, 7, KeyPurpose::kShares).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(SecretSharing, AnyThresholdOfSharesGivesTheSecretAndFewerDoNot) {
  const Secret secret = DeriveSecret(SeedOf(9), 1);
  const std::vector<uint32_t> points = {1, 2, 5, 70'000, 4'000'000'000, 9};
  for (int threshold = 1; threshold <= 6; ++threshold) {
    const auto shares = SplitSecret(secret, points, threshold, SeedOf(3));
    for (int chosen = 1; chosen < 64; ++chosen) {
      std::vector<SecretShare> some;
      std::vector<uint32_t> at;
      for (int k = 0; k < 6; ++k) {
        if (chosen >> k & 1) {
          some.push_back(shares[k]);
          at.push_back(points[k]);
        }
      }
      const bool enough = std::popcount(static_cast<unsigned>(chosen)) >= threshold;
      EXPECT_EQ(CombineShares(some, ReconstructionCoefficients(at)) == secret, enough)
          << threshold << " of " << chosen;
    }
  }
}

TEST(MaskGraph, RingIsSymmetricAndChangesWithTheRound) {
  SecureAggregationOptions options{.num_clients = 31, .neighbours = 6, .round_seed = 5};
  const MaskGraph graph = *MakeMaskGraph(options);
  for (int i = 0; i < 31; ++i) {
    EXPECT_EQ(graph.neighbours[i].size(), 6u);
    for (int j : graph.neighbours[i]) EXPECT_THAT(graph.neighbours[j], testing::Contains(i));
  }
  EXPECT_EQ(graph.threshold, 4);  // Of 7 shares
  EXPECT_EQ(MakeMaskGraph({.num_clients = 10})->threshold, 7);
  options.round_seed = 6;
  EXPECT_NE(MakeMaskGraph(options)->neighbours, graph.neighbours);
}

TEST(MaskGraph, NeighboursOfASmallCohortAreAll) {
  for (int clients : {3, 6, 7}) {
    const MaskGraph graph = *MakeMaskGraph({.num_clients = clients, .neighbours = 6});
    EXPECT_EQ(graph.neighbours, MakeMaskGraph({.num_clients = clients})->neighbours);
    EXPECT_EQ(graph.neighbours[0].size(), static_cast<size_t>(clients - 1));
  }
  // One more, and each has two left that it does not know.
  const MaskGraph ring = *MakeMaskGraph({.num_clients = 9, .neighbours = 6});
  for (const auto& others : ring.neighbours) {
    EXPECT_EQ(std::set<int>(others.begin(), others.end()).size(), 6u);
  }
}

TEST(MaskGraph, ThresholdIsAlwaysMoreThanHalf) {
  EXPECT_EQ(MakeMaskGraph({.num_clients = 10, .threshold = 2})->threshold, 6);
  EXPECT_EQ(MakeMaskGraph({.num_clients = 11, .threshold = 2})->threshold, 6);
  EXPECT_EQ(MakeMaskGraph({.num_clients = 10, .threshold = 9})->threshold, 9);
  EXPECT_EQ(MakeMaskGraph({.num_clients = 2})->threshold, 2);
}

TEST(MaskGraph, RefusesWhatProtectsNobody) {
  const auto status = [](const SecureAggregationOptions& options) {
    return MakeMaskGraph(options).status();
  };
  EXPECT_EQ(status({.num_clients = 10, .neighbours = 3}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status({.num_clients = 1, .neighbours = -2}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status({.num_clients = 10, .threshold = -1}).code(),
            absl::StatusCode::kInvalidArgument);
  for (int clients : {0, 1}) {
    EXPECT_EQ(status({.num_clients = clients}).code(), absl::StatusCode::kFailedPrecondition);
  }
  EXPECT_EQ(std::string(status({.num_clients = 10, .threshold = 11}).message()),
            "secure aggregation of 10 clients: a threshold of 11 shares, but there are 10 of a "
            "secret");
}

struct Case {
  int clients;
  int neighbours;
  int dropped_percent;
};

class SecureAggregation : public testing::TestWithParam<Case> {};

TEST_P(SecureAggregation, MaskedSumHasTheBitsOfThePlainSum) {
  const auto [clients, neighbours, dropped_percent] = GetParam();
  const int64_t size = 1003;
  auto round = SecureAggregationRound::Start(
      {.num_clients = clients, .neighbours = neighbours, .round_seed = 77}, SimulationSecret(1, 2));
  ASSERT_TRUE(round.ok()) << round.status();
  std::vector<bool> survived(clients, true);
  for (int k = 0; k < clients * dropped_percent / 100; ++k) survived[k * 7 % clients] = false;
  Values plain(size, 0), masked(size, 0);
  for (int client = 0; client < clients; ++client) {
    const Values update = UpdateOf(client, size);
    Values sent = update;
    round->AddMask(client, 0, absl::MakeSpan(sent).first(500));  // In slices
    round->AddMask(client, 500, absl::MakeSpan(sent).subspan(500));
    for (size_t k = 0; k < update.size(); ++k) ASSERT_NE(sent[k], update[k]);
    if (!survived[client]) continue;  // Drops out after it has shared its secrets
    AddTo(plain, update);
    AddTo(masked, sent);
  }
  ASSERT_NE(masked, plain);
  const auto masks = round->Finish(survived);
  ASSERT_TRUE(masks.ok()) << masks.status();
  masks->RemoveFrom(600, absl::MakeSpan(masked).subspan(600));
  masks->RemoveFrom(0, absl::MakeSpan(masked).first(600));
  EXPECT_EQ(masked, plain);
  EXPECT_GT(round->protocol_bytes(), 0);
}

INSTANTIATE_TEST_SUITE_P(All, SecureAggregation,
                         testing::Values(Case{2, 0, 0}, Case{3, 0, 33}, Case{10, 0, 0},
                                         Case{10, 0, 10}, Case{10, 0, 30}, Case{30, 0, 0},
                                         Case{30, 0, 10}, Case{30, 0, 33}, Case{60, 20, 0},
                                         Case{60, 20, 10}, Case{60, 30, 25}),
                         [](const auto& info) {
                           return absl::StrCat(info.param.clients, "clients", info.param.neighbours,
                                               "neighbours", info.param.dropped_percent, "percent");
                         });

TEST(SecureAggregationRound, TooFewSurvivorsAreAnError) {
  auto round = SecureAggregationRound::Start({.num_clients = 12}, SimulationSecret(1, 3));
  ASSERT_TRUE(round.ok());
  std::vector<bool> survived(12, true);
  for (int k = 0; k < 5; ++k) survived[k] = false;  // 7 of 12, 8 are needed
  const absl::Status status = round->Finish(survived).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("needs 8 shares"));
  survived[0] = true;
  EXPECT_TRUE(round->Finish(survived).ok());
}

TEST(SecureAggregationRound, ASecondAnswerForOtherSurvivorsIsRefused) {
  auto round = SecureAggregationRound::Start({.num_clients = 12}, SimulationSecret(1, 3));
  std::vector<bool> survived(12, true);
  ASSERT_TRUE(round->Finish(survived).ok());
  ASSERT_TRUE(round->Finish(survived).ok());
  survived[4] = false;
  EXPECT_EQ(round->Finish(survived).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(SecureAggregationRound, IsAFunctionOfItsArguments) {
  const auto masked = [](uint64_t seed, uint64_t number) {
    auto round = SecureAggregationRound::Start({.num_clients = 5}, SimulationSecret(seed, number));
    Values values(20, 0);
    round->AddMask(2, 0, absl::MakeSpan(values));
    return values;
  };
  EXPECT_EQ(masked(1, 2), masked(1, 2));
  EXPECT_NE(masked(1, 2), masked(1, 3));
  EXPECT_NE(masked(1, 2), masked(2, 2));
}

// The server sees masked updates: equal updates look unlike, and bits are even.
TEST(SecureAggregationRound, AMaskedUpdateLooksUniform) {
  auto round = SecureAggregationRound::Start({.num_clients = 6}, SimulationSecret(4, 4));
  Values a(10'000, 12), b(10'000, 12);
  round->AddMask(0, 0, absl::MakeSpan(a));
  round->AddMask(1, 0, absl::MakeSpan(b));
  int64_t ones = 0, equal = 0;
  for (size_t k = 0; k < a.size(); ++k) {
    ones += std::popcount(static_cast<uint64_t>(a[k]));
    equal += a[k] == b[k];
  }
  EXPECT_NEAR(static_cast<double>(ones), 320'000, 5 * 400);  // sqrt(640000) / 2 = 400
  EXPECT_EQ(equal, 0);
}

// Message by message, with a client that is gone before it shares its secrets.
class SecureAggregationProtocol : public testing::Test {
 protected:
  static constexpr int kClients = 7;

  void SetUp() override {
    graph_ = std::make_shared<const MaskGraph>(
        *MakeMaskGraph({.num_clients = kClients, .threshold = 4, .round_seed = 5}));
    for (int client = 0; client < kClients; ++client) {
      clients_.emplace_back(graph_, client, SeedOf(static_cast<uint8_t>(client + 1)));
      keys_.push_back(clients_.back().Advertise());
    }
  }

  std::shared_ptr<const MaskGraph> graph_;
  std::vector<SecureAggregationClient> clients_;
  std::vector<KeyAdvertisement> keys_;
};

TEST_F(SecureAggregationProtocol, BearsDropoutsAtEveryStep) {
  const int before_sharing = 2, before_sending = 5, before_revealing = 0;
  std::vector<std::map<int, std::string>> inboxes(kClients);
  for (int client = 0; client < kClients; ++client) {
    if (client == before_sharing) continue;
    auto sent = clients_[client].ShareSecrets(keys_);
    ASSERT_TRUE(sent.ok()) << sent.status();
    for (auto& [receiver, sealed] : *sent) inboxes[receiver][client] = sealed;
  }
  SecureAggregationView view{.graph = graph_.get(),
                             .advertisements = keys_,
                             .shared = std::vector<bool>(kClients, true),
                             .survived = std::vector<bool>(kClients, true),
                             .revealed = {}};
  view.shared[before_sharing] = view.survived[before_sharing] = false;
  view.survived[before_sending] = false;
  Values plain(50, 0), masked(50, 0);
  for (int client = 0; client < kClients; ++client) {
    if (client == before_sharing) continue;
    ASSERT_TRUE(clients_[client].Receive(inboxes[client]).ok());
    if (!view.survived[client]) continue;
    Values update = UpdateOf(client, 50);
    AddTo(plain, update);
    clients_[client].AddMask(0, absl::MakeSpan(update));
    AddTo(masked, update);
  }
  for (int client = 0; client < kClients; ++client) {
    if (!view.survived[client] || client == before_revealing) continue;
    auto revealed = clients_[client].Reveal(view.survived);
    ASSERT_TRUE(revealed.ok()) << revealed.status();
    // Never both secrets of one client.
    for (const auto& [of, share] : revealed->masking_secrets) {
      EXPECT_EQ(revealed->self_masks.count(of), 0u);
    }
    view.revealed[client] = *std::move(revealed);
  }
  const auto masks = ReconstructMasks(view);
  ASSERT_TRUE(masks.ok()) << masks.status();
  masks->RemoveFrom(0, absl::MakeSpan(masked));
  EXPECT_EQ(masked, plain);

  // Fewer answers than the threshold.
  view.revealed.erase(1);
  EXPECT_EQ(ReconstructMasks(view).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(SecureAggregationProtocol, TamperedSharesAreFound) {
  auto sent = clients_[1].ShareSecrets(keys_);
  ASSERT_TRUE(sent.ok() && clients_[0].ShareSecrets(keys_).ok());
  std::string sealed = (*sent)[0];
  sealed[10] ^= 1;
  EXPECT_EQ(clients_[0].Receive({{1, sealed}}).code(), absl::StatusCode::kDataLoss);
  ASSERT_TRUE(clients_[3].ShareSecrets(keys_).ok());
  // Sealed for client 0, not for client 3.
  EXPECT_EQ(clients_[3].Receive({{1, (*sent)[0]}}).code(), absl::StatusCode::kDataLoss);
}

TEST_F(SecureAggregationProtocol, AClientAloneDoesNotSend) {
  ASSERT_TRUE(clients_[0].ShareSecrets(keys_).ok());
  EXPECT_EQ(clients_[0].Receive({}).code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace shoal
