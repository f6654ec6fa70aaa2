#include "trainer/federated/partition.h"

#include <algorithm>
#include <cmath>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/memory_file_system.h"
#include "core/random.h"
#include "trainer/federated/partition_keys.h"

namespace shoal {
namespace {

std::vector<int64_t> Labels(int64_t count, int num_classes) {
  std::vector<int64_t> labels;
  for (int64_t k = 0; k < count; ++k) {
    labels.push_back(static_cast<int64_t>(Philox(5).Bits(k) % num_classes));
  }
  return labels;
}

// Every example has exactly one client, and each list increases.
void ExpectExactCover(const Partition& clients, int64_t num_examples) {
  std::vector<int> owners(num_examples, 0);
  for (const auto& client : clients) {
    EXPECT_TRUE(std::is_sorted(client.begin(), client.end()));
    for (int64_t index : client) {
      ASSERT_GE(index, 0);
      ASSERT_LT(index, num_examples);
      ++owners[index];
    }
  }
  EXPECT_THAT(owners, testing::Each(1));
}

std::set<int64_t> LabelsOf(const std::vector<int64_t>& client, const std::vector<int64_t>& labels) {
  std::set<int64_t> found;
  for (int64_t index : client) found.insert(labels[index]);
  return found;
}

TEST(Partition, IidCoversInEqualSizesAndFollowsTheSeed) {
  for (const auto& [examples, clients] : std::vector<std::pair<int64_t, int>>{
           {1, 1}, {7, 7}, {1000, 3}, {1797, 100}, {50'000, 1000}}) {
    const Partition partition = *PartitionIid(examples, clients, 42);
    ASSERT_EQ(partition.size(), static_cast<size_t>(clients));
    ExpectExactCover(partition, examples);
    for (const auto& client : partition) {
      EXPECT_GE(client.size(), static_cast<size_t>(examples / clients));
      EXPECT_LE(client.size(), static_cast<size_t>(examples / clients + 1));
    }
    EXPECT_EQ(partition, *PartitionIid(examples, clients, 42));
  }
  EXPECT_NE(*PartitionIid(1000, 3, 42), *PartitionIid(1000, 3, 43));
}

TEST(Partition, IidShuffles) {
  // A client of 1000 among 10000 has a mean index near the middle: 4999.5 +- 91.
  const Partition partition = *PartitionIid(10'000, 10, 1);
  for (const auto& client : partition) {
    double sum = 0;
    for (int64_t index : client) sum += static_cast<double>(index);
    EXPECT_NEAR(sum / 1000, 4999.5, 5 * 91);
  }
}

TEST(Partition, DirichletCoversAndFollowsTheSeed) {
  const auto labels = Labels(5000, 10);
  for (double alpha : {0.01, 0.1, 1.0, 100.0}) {
    const DirichletOptions options{.alpha = alpha, .min_examples = 0};
    const Partition partition = *PartitionDirichlet(labels, 20, 42, options);
    ASSERT_EQ(partition.size(), 20u);
    ExpectExactCover(partition, 5000);
    EXPECT_EQ(partition, *PartitionDirichlet(labels, 20, 42, options));
    EXPECT_NE(partition, *PartitionDirichlet(labels, 20, 43, options));
  }
}

// Shares of a class among n clients: mean 1/n, variance (1/n) (1 - 1/n) / (n alpha + 1).
TEST(Partition, DirichletSharesHaveTheMomentsOfTheirLaw) {
  constexpr int kClasses = 300, kPerClass = 2000, kClients = 5;
  std::vector<int64_t> labels;
  for (int k = 0; k < kClasses * kPerClass; ++k) labels.push_back(k % kClasses);
  for (double alpha : {0.05, 0.3, 1.0, 4.0}) {
    const Partition partition =
        *PartitionDirichlet(labels, kClients, 9, {.alpha = alpha, .min_examples = 0});
    double squares = 0;
    for (const auto& client : partition) {
      std::vector<double> counts(kClasses, 0);
      for (int64_t index : client) ++counts[labels[index]];
      double mean = 0;
      for (double count : counts) {
        const double share = count / kPerClass;
        mean += share / kClasses;
        squares += (share - 0.2) * (share - 0.2) / (kClasses * kClients);
      }
      EXPECT_NEAR(mean, 0.2, 4 * std::sqrt(0.16 / (kClients * alpha + 1) / kClasses));
    }
    const double variance = 0.16 / (kClients * alpha + 1);
    EXPECT_NEAR(squares / variance, 1, 0.15) << alpha;
  }
}

TEST(Partition, DirichletGivesEveryClientItsMinimumOrSaysWhyNot) {
  const auto labels = Labels(1797, 10);
  const Partition partition =
      *PartitionDirichlet(labels, 10, 3, {.alpha = 0.5, .min_examples = 30});
  ExpectExactCover(partition, 1797);
  for (const auto& client : partition) EXPECT_GE(client.size(), 30u);

  const absl::Status status =
      PartitionDirichlet(labels, 100, 3, {.alpha = 0.01, .min_examples = 17, .max_attempts = 5})
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              testing::AllOf(testing::HasSubstr("none of 5 draws of Dirichlet(0.01)"),
                             testing::HasSubstr("raise alpha")));
  EXPECT_THAT(
      std::string(PartitionDirichlet(labels, 100, 3, {.min_examples = 18}).status().message()),
      testing::HasSubstr("1797 examples cannot give each of 100 clients 18"));
  EXPECT_FALSE(PartitionDirichlet(labels, 10, 3, {.alpha = 0}).ok());
  EXPECT_FALSE(PartitionDirichlet(labels, 0, 3, {}).ok());
}

TEST(Partition, ShardsGiveFewLabelsEach) {
  std::vector<int64_t> labels;  // 6000 of each of ten digits, as MNIST nearly is
  for (int k = 0; k < 60'000; ++k) labels.push_back((k * 7) % 10);
  const Partition partition = *PartitionShards(labels, 100, 2, 42);
  ExpectExactCover(partition, 60'000);
  std::set<std::set<int64_t>> kinds;
  for (const auto& client : partition) {
    EXPECT_EQ(client.size(), 600u);
    EXPECT_LE(LabelsOf(client, labels).size(), 2u);
    kinds.insert(LabelsOf(client, labels));
  }
  EXPECT_GT(kinds.size(), 20u);  // Not neighbouring labels only
  EXPECT_EQ(partition, *PartitionShards(labels, 100, 2, 42));
  EXPECT_NE(partition, *PartitionShards(labels, 100, 2, 43));

  ExpectExactCover(*PartitionShards(Labels(1797, 10), 100, 3, 1), 1797);
  EXPECT_FALSE(PartitionShards(labels, 100, 0, 1).ok());
  EXPECT_FALSE(PartitionShards(absl::MakeConstSpan(labels).first(199), 100, 2, 1).ok());
}

TEST(Partition, OneClientAKey) {
  const NaturalPartition partition = PartitionByKey({"ruth", "job", "ruth", "acts", "job"});
  EXPECT_THAT(partition.names, testing::ElementsAre("acts", "job", "ruth"));
  EXPECT_EQ(partition.clients, (Partition{{3}, {1, 4}, {0, 2}}));
  EXPECT_TRUE(PartitionByKey({}).clients.empty());
}

class PartitionKeys : public testing::Test {
 protected:
  void Write(const std::string& text) { ASSERT_TRUE(WriteFileAtomically(files_, "/f", text).ok()); }
  std::string CsvError(const std::string& text) {
    Write(text);
    return std::string(ReadCsvColumn(files_, "/f", "user").status().message());
  }
  MemoryFileSystem files_;
};

TEST_F(PartitionKeys, ReadsCsv) {
  Write("text,user,n\r\nhello,ann,1\r\n\"a, \"\"b\"\"\nc\",\"bob, jr\",2\r\n,ann,\r\nx,,3");
  EXPECT_THAT(*ReadCsvColumn(files_, "/f", "user"),
              testing::ElementsAre("ann", "bob, jr", "ann", ""));
  Write("user\na\n\nb\n");
  EXPECT_THAT(*ReadCsvColumn(files_, "/f", "user"), testing::ElementsAre("a", "", "b"));
  EXPECT_EQ(CsvError("text,usr\n"), "/f:1: no column \"user\", did you mean \"usr\"?");
  EXPECT_EQ(CsvError("text,user\n\"a\nb\",c\nd\n"), "/f:4: 1 fields, the first line has 2");
  EXPECT_EQ(CsvError("text,user\na,b\n\"c,d\n\n"), "/f:3: a quoted field is not closed");
}

}  // namespace
}  // namespace shoal
