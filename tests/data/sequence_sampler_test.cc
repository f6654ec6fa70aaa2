#include "data/sequence_sampler.h"

#include <algorithm>
#include <numeric>

#include <gmock/gmock.h>

#include "tests/data/test_files.h"

namespace shoal {
namespace {

using ::testing::ElementsAre;
constexpr int64_t kIgnore = Batch::kIgnoreIndex;

TEST(ShufflePermutationTest, IsABijectionOfEverySize) {
  for (int64_t size = 1; size <= 1000; ++size) {
    const ShufflePermutation permutation(42, size % 3, size);
    std::vector<bool> seen(size);
    for (int64_t i = 0; i < size; ++i) {
      const int64_t place = permutation(i);
      ASSERT_TRUE(place >= 0 && place < size && !seen[place])
          << "size " << size << ": " << i << " -> " << place;
      seen[place] = true;
    }
  }
}

TEST(ShufflePermutationTest, DependsOnSeedAndEpochAlone) {
  const auto order = [](uint64_t seed, int64_t epoch) {
    std::vector<int64_t> out;
    const ShufflePermutation permutation(seed, epoch, 100);
    for (int64_t i = 0; i < 100; ++i) out.push_back(permutation(i));
    return out;
  };
  EXPECT_EQ(order(1, 0), order(1, 0));
  EXPECT_NE(order(1, 0), order(1, 1));
  EXPECT_NE(order(1, 0), order(2, 0));
}

// A place is as likely to hold one sequence as another: chi-square over 4096 seeds, 63 degrees of
// freedom.
TEST(ShufflePermutationTest, IsUniform) {
  std::vector<int> counts(64);
  for (uint64_t seed = 0; seed < 4096; ++seed) ++counts[ShufflePermutation(seed, 0, 64)(5)];
  double chi_square = 0;
  for (int count : counts) chi_square += (count - 64.0) * (count - 64.0) / 64.0;
  EXPECT_LT(chi_square, 120);
}

TEST(ShufflePermutationTest, LargeSizesCostAsLittle) {
  const int64_t size = int64_t{1} << 40;
  const ShufflePermutation permutation(3, 0, size);
  for (int64_t i = 0; i < 1000; ++i) EXPECT_LT(permutation(size - 1 - i), size);
}

struct Row {
  explicit Row(int64_t length)
      : tokens(length), targets(length), positions(length), documents(length) {}
  std::vector<int64_t> tokens, targets, positions;
  std::vector<int32_t> documents;
  int64_t num_targets = 0;
};

std::vector<Row> ReadAll(const SequenceSource& source, int64_t length) {
  std::vector<Row> rows;
  for (int64_t i = 0; i < source.num_sequences(); ++i) {
    Row row(length);
    const auto targets = source.Read(i, {row.tokens, row.targets, row.positions, row.documents});
    EXPECT_TRUE(targets.ok()) << targets.status();
    row.num_targets = *targets;
    EXPECT_EQ(row.num_targets,
              length - std::count(row.targets.begin(), row.targets.end(), kIgnore));
    rows.push_back(std::move(row));
  }
  return rows;
}

class SequencesTest : public ::testing::Test {
 protected:
  std::shared_ptr<const TokenDataset> Dataset(const std::string& lists) {
    auto dataset =
        TokenDataset::Open({folder_.Write("tokens.json", "{\"input_ids\": " + lists + "}")});
    EXPECT_TRUE(dataset.ok()) << dataset.status();
    return std::make_shared<const TokenDataset>(*std::move(dataset));
  }
  TestFolder folder_;
};

TEST_F(SequencesTest, PackedOverlapByOneToken) {
  const auto source =
      MakePackedSequences(Dataset("[[0, 1, 2], [3, 4, 5, 6, 7, 8, 9]]"), {.seq_length = 4});
  const auto rows = ReadAll(*source, 4);
  ASSERT_EQ(rows.size(), 2u);  // Tokens 8 and 9 do not fill a third
  EXPECT_THAT(rows[0].tokens, ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(rows[0].targets, ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(rows[0].positions, ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(rows[1].tokens, ElementsAre(4, 5, 6, 7));
  EXPECT_THAT(rows[1].targets, ElementsAre(5, 6, 7, 8));
}

TEST_F(SequencesTest, DocumentMaskRestartsPositionsAndHidesTheNextDocument) {
  const auto source = MakePackedSequences(Dataset("[[0, 1], [2], [3, 4, 5, 6, 7, 8]]"),
                                          {.seq_length = 4, .document_mask = true});
  const auto rows = ReadAll(*source, 4);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_THAT(rows[0].targets, ElementsAre(1, kIgnore, kIgnore, 4));
  EXPECT_THAT(rows[0].positions, ElementsAre(0, 1, 0, 0));
  EXPECT_THAT(rows[0].documents, ElementsAre(0, 0, 1, 2));
  EXPECT_THAT(rows[1].tokens, ElementsAre(4, 5, 6, 7));
  EXPECT_THAT(rows[1].targets, ElementsAre(5, 6, 7, 8));
  EXPECT_THAT(rows[1].positions, ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(rows[1].documents, ElementsAre(0, 0, 0, 0));
}

TEST_F(SequencesTest, DocumentsAreRowsOfTheirOwn) {
  const auto source = MakeDocumentSequences(
      Dataset("[[1, 2, 3, 4], [5, 6], [7], [11, 12, 13, 14, 15], [21, 22, 23, 24, 25, 26]]"),
      {.seq_length = 4, .padding_id = 9});
  const auto rows = ReadAll(*source, 4);
  ASSERT_EQ(rows.size(), 5u);  // [7] has nothing to predict
  EXPECT_THAT(rows[0].tokens, ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(rows[0].targets, ElementsAre(2, 3, 4, kIgnore));
  EXPECT_THAT(rows[1].tokens, ElementsAre(5, 6, 9, 9));
  EXPECT_THAT(rows[1].targets, ElementsAre(6, kIgnore, kIgnore, kIgnore));
  EXPECT_THAT(rows[2].targets,
              ElementsAre(12, 13, 14, 15));  // 15 is predicted here, and has no row of its own
  EXPECT_THAT(rows[3].targets, ElementsAre(22, 23, 24, 25));
  EXPECT_THAT(rows[4].tokens, ElementsAre(25, 26, 9, 9));
  EXPECT_THAT(rows[4].targets, ElementsAre(26, kIgnore, kIgnore, kIgnore));
}

TEST_F(SequencesTest, PartsAreDisjointAndComplete) {
  std::string ids;
  for (int i = 0; i < 1000; ++i) ids += (i == 0 ? "" : ",") + std::to_string(i);
  const auto dataset = Dataset("[[" + ids + "]]");
  for (double holdout : {0.01, 0.1, 0.25, 0.5}) {
    const auto train = MakePackedSequences(dataset, {.seq_length = 7, .end = 1 - holdout});
    const auto eval = MakePackedSequences(dataset, {.seq_length = 7, .begin = 1 - holdout});
    EXPECT_EQ(train->num_sequences() + eval->num_sequences(), 999 / 7);
    EXPECT_EQ(ReadAll(*eval, 7)[0].targets[0], ReadAll(*train, 7).back().targets.back() + 1);
  }
}

}  // namespace
}  // namespace shoal
