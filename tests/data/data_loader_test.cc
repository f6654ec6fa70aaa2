#include "data/data_loader.h"

#include <set>

#include <gmock/gmock.h>

#include "tests/data/test_files.h"

namespace shoal {
namespace {

using ::testing::HasSubstr;

// One document whose tokens count up, so that a sequence is known by its first token.
class DataLoaderTest : public ::testing::Test {
 protected:
  DataLoaderTest() {
    std::string ids;
    for (int i = 0; i < kTokens; ++i) ids += (i == 0 ? "" : ",") + std::to_string(i);
    options_.prepared.train = {folder_.Write("train.json", "{\"input_ids\": [[" + ids + "]]}")};
    options_.data.set_seq_length(kLength);
    options_.seed = 5;
  }

  DataLoader Make(int rows, int micro_batches, int rank, int num_ranks) {
    DataLoaderOptions options = options_;
    options.rows = rows;
    options.micro_batches = micro_batches;
    options.rank = rank;
    options.num_ranks = num_ranks;
    auto loader = DataLoader::Create(options);
    EXPECT_TRUE(loader.ok()) << loader.status();
    return *std::move(loader);
  }

  // Sequences of a step over all ranks.
  std::multiset<int64_t> Step(int rows, int micro_batches, int num_ranks, int64_t step) {
    std::multiset<int64_t> sequences;
    for (int rank = 0; rank < num_ranks; ++rank) {
      const auto batches = Make(rows, micro_batches, rank, num_ranks).MicroBatches(step);
      EXPECT_EQ(batches->size(), static_cast<size_t>(micro_batches));
      for (const Batch& batch : *batches) {
        EXPECT_EQ(batch.num_targets, rows * kLength);
        for (int b = 0; b < rows; ++b)
          sequences.insert(batch.tokens_BT[b][0].item<int64_t>() / kLength);
      }
    }
    return sequences;
  }

  static constexpr int kTokens = 331, kLength = 10;  // 33 sequences
  TestFolder folder_;
  DataLoaderOptions options_;
};

TEST_F(DataLoaderTest, EveryLayoutSeesTheSameStep) {
  for (int64_t step = 0; step < 12; ++step) {  // Into the third epoch
    const auto whole = Step(8, 1, 1, step);
    EXPECT_EQ(Step(4, 1, 2, step), whole);
    EXPECT_EQ(Step(4, 2, 1, step), whole);
    EXPECT_EQ(Step(1, 2, 4, step), whole);
  }
}

TEST_F(DataLoaderTest, AnEpochVisitsEverySequenceOnce) {
  const DataLoader loader = Make(3, 1, 0, 1);
  EXPECT_EQ(loader.num_sequences(), 33);
  EXPECT_EQ(loader.tokens_per_epoch(), 330);
  for (int epoch = 0; epoch < 3; ++epoch) {
    std::set<int64_t> seen;
    for (int64_t step = 11 * epoch; step < 11 * (epoch + 1); ++step) {
      for (int64_t sequence : Step(3, 1, 1, step)) seen.insert(sequence);
    }
    EXPECT_EQ(seen.size(), 33u) << "epoch " << epoch;
  }
  EXPECT_DOUBLE_EQ(loader.EpochAt(22), 2.0);
}

TEST_F(DataLoaderTest, AStepDoesNotDependOnThoseBefore) {
  const DataLoader running = Make(4, 2, 0, 1);
  for (int64_t step = 0; step < 6; ++step) {
    const auto a = running.MicroBatches(step), b = Make(4, 2, 0, 1).MicroBatches(step);
    for (size_t m = 0; m < a->size(); ++m) {
      EXPECT_TRUE((*a)[m].tokens_BT.equal((*b)[m].tokens_BT) &&
                  (*a)[m].targets_BT.equal((*b)[m].targets_BT));
    }
  }
}

TEST_F(DataLoaderTest, HeldOutTokensAreNeverTrainedOn) {
  options_.data.set_holdout(0.2);
  std::set<int64_t> trained;
  const DataLoader loader = Make(2, 1, 0, 1);
  for (int64_t step = 0; step < 26; ++step) {
    for (int64_t sequence : Step(2, 1, 1, step)) trained.insert(sequence);
  }
  EXPECT_EQ(static_cast<int64_t>(trained.size()), loader.num_sequences());
  EXPECT_EQ(loader.num_sequences(), 26);
  const auto eval = loader.EvalBatches(0);
  ASSERT_TRUE(eval.ok());
  EXPECT_EQ(eval->size(), 4u);
  EXPECT_EQ(eval->back().num_targets, kLength);  // The second row is only there to fill the batch
  for (const Batch& batch : *eval) {
    EXPECT_EQ(trained.count(batch.tokens_BT[0][0].item<int64_t>() / kLength), 0u);
  }
  EXPECT_EQ(loader.EvalBatches(3)->size(), 3u);
  EXPECT_EQ(Make(2, 1, 1, 2).num_eval_batches(), 2);
}

TEST_F(DataLoaderTest, FileOrderAndDocumentRows) {
  options_.data.set_shuffle(false);
  options_.data.set_packing(false);
  options_.prepared.train = {folder_.Write(
      "rows.json", R"({"input_ids": [[0,1,2,3,4,5,6,7,8,9],[10,11,12,13,14,15,16,17,18,19]]})")};
  const auto batches = Make(2, 1, 0, 1).MicroBatches(0);
  const Batch& batch = batches->at(0);
  EXPECT_EQ(batch.num_targets, 18);
  for (int b = 0; b < 2; ++b) {
    for (int t = 0; t < 10; ++t) {
      EXPECT_EQ(batch.tokens_BT[b][t].item<int64_t>(), 10 * b + t);
      EXPECT_EQ(batch.targets_BT[b][t].item<int64_t>(),
                t == 9 ? Batch::kIgnoreIndex : 10 * b + t + 1);
    }
  }
  EXPECT_FALSE(batch.documents_BT.defined());
}

TEST_F(DataLoaderTest, DocumentMaskGivesDocuments) {
  options_.data.set_document_mask(true);
  const auto batches = Make(2, 1, 0, 1).MicroBatches(0);
  EXPECT_EQ(batches->at(0).documents_BT.scalar_type(), at::kInt);
  EXPECT_EQ(batches->at(0).documents_BT.size(1), kLength);
}

TEST_F(DataLoaderTest, TooLittleDataIsAnError) {
  options_.data.set_seq_length(400);
  EXPECT_THAT(std::string(DataLoader::Create(options_).status().message()),
              HasSubstr("data.train does not fill one sequence: 331 tokens, data.seq_length 400"));
  options_.data.set_seq_length(kLength);
  options_.data.set_holdout(0.001);
  EXPECT_THAT(std::string(DataLoader::Create(options_).status().message()),
              HasSubstr("data.holdout does not fill"));
}

}  // namespace
}  // namespace shoal
