#include "data/examples.h"

#include <set>

#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include "data/example_loader.h"
#include "data/prepare_data.h"
#include "tests/data/test_files.h"

namespace shoal {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Show(const ExampleSequence& sequence) {
  std::string text;
  for (const ExampleSegment& segment : sequence)
    text += segment.trained ? "[" + segment.text + "]" : segment.text;
  return text;
}

std::string Parsed(const std::string& line, ExampleKind kind = ExampleKind::kAnswers) {
  ChatSection chat;
  chat.set_turn_start("<{role}>");
  chat.set_turn_end("|");
  const auto sequences = ParseExample(line, kind, chat);
  if (!sequences.ok()) return std::string(sequences.status().message());
  std::string text;
  for (const ExampleSequence& sequence : *sequences)
    text += (text.empty() ? "" : " / ") + Show(sequence);
  return text;
}

TEST(ParseExampleTest, OnlyAnswersAreTrained) {
  EXPECT_EQ(Parsed(R"({"prompt": "2+2=", "completion": "4"})"), "2+2=[4]");
  EXPECT_EQ(Parsed(R"({"messages": [{"role": "system", "content": "Be brief."},
                                    {"role": "user", "content": "Hi"},
                                    {"role": "assistant", "content": "Yo"},
                                    {"role": "user", "content": "And?"},
                                    {"role": "assistant", "content": "Bye"}]})"),
            "<system>Be brief.|<user>Hi|<assistant>[Yo|]<user>And?|<assistant>[Bye|]");
  EXPECT_EQ(Parsed(R"({"prompt": [{"role": "user", "content": "Hi"}], "completion": "Yo"})"),
            "<user>Hi|<assistant>[Yo|]");
}

TEST(ParseExampleTest, PreferencesAreTwoSequences) {
  EXPECT_EQ(Parsed(R"({"prompt": "a", "chosen": "b", "rejected": "c"})", ExampleKind::kPreferences),
            "a[b] / a[c]");
  EXPECT_EQ(Parsed(R"({"prompt": [{"role": "user", "content": "Hi"}], "chosen": "b",
                       "rejected": [{"role": "assistant", "content": "c"}]})",
                   ExampleKind::kPreferences),
            "<user>Hi|<assistant>[b|] / <user>Hi|<assistant>[c|]");
}

TEST(ParseExampleTest, SaysWhatIsWrong) {
  EXPECT_EQ(Parsed("{"), "not a line of JSON");
  EXPECT_THAT(Parsed("[1]"), HasSubstr("expected a JSON object, got array"));
  EXPECT_EQ(Parsed(R"({"prompt": "a"})"), "there is no field \"completion\"");
  EXPECT_THAT(Parsed(R"({"prompt": "a", "completion": 3})"),
              HasSubstr("\"completion\": expected a text or a list of messages, got number"));
  EXPECT_THAT(Parsed(R"({"messages": [{"role": "robot", "content": "x"}]})"),
              HasSubstr("a message is"));
  EXPECT_EQ(Parsed(R"({"messages": [{"role": "user", "content": "x"}]})"),
            "there is no answer to learn from");
}

TEST(ChatTemplateTest, SaysTheTurnsInJinja) {
  ChatSection chat;  // ChatML
  EXPECT_EQ(ChatTemplateOf(chat),
            "{%- for message in messages -%}\n"
            "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' "
            "-}}\n"
            "{%- endfor -%}\n"
            "{%- if add_generation_prompt -%}\n"
            "{{- '<|im_start|>' + 'assistant' + '\\n' -}}\n"
            "{%- endif -%}\n");
  chat.set_turn_start("it's ");
  EXPECT_THAT(ChatTemplateOf(chat), HasSubstr("{{- 'it\\'s ' + message['content']"));
}

class ExampleLoaderTest : public ::testing::Test {
 protected:
  ExampleLoaderTest() {
    std::string text;
    for (int i = 0; i < 400; ++i)
      text += "the quick brown fox jumps over " + std::to_string(i) + " dogs\n";
    std::string examples;
    for (int i = 0; i < kExamples; ++i) {
      const std::string n = std::to_string(i);
      examples += R"({"prompt": "count )" + n + R"( ", "chosen": "dogs )" +
                  std::string(i % 4, 'x') + R"(", "rejected": "over"})" + "\n";
    }
    // A tokenizer, from a run on documents.
    PrepareOptions documents;
    documents.data.add_train()->set_path(folder_.Write("text.txt", text));
    documents.tokenizer.mutable_train()->set_vocab_size(300);
    documents.output_dir = folder_.Path("documents");
    const auto made = PrepareData(documents);
    EXPECT_TRUE(made.ok()) << made.status();
    options_.data.add_train()->set_path(folder_.Write("pairs.jsonl", examples));
    options_.kind = DataKind::kPreferences;
    options_.model_path = made->tokenizer;
    options_.output_dir = folder_.Path("pairs");
    const auto prepared = PrepareData(options_);
    EXPECT_TRUE(prepared.ok()) << prepared.status();
    loader_.train = prepared->train;
    loader_.kind = ExampleKind::kPreferences;
    loader_.seq_length = 32;
    loader_.seed = 3;
  }

  ExampleLoader Make(int examples, int micro_batches, int rank, int num_ranks) {
    loader_.examples = examples;
    loader_.micro_batches = micro_batches;
    loader_.rank = rank;
    loader_.num_ranks = num_ranks;
    auto loader = ExampleLoader::Create(loader_);
    EXPECT_TRUE(loader.ok()) << loader.status();
    return *std::move(loader);
  }

  std::multiset<int64_t> Step(int examples, int micro_batches, int num_ranks, int64_t step) {
    std::multiset<int64_t> numbers;
    for (int rank = 0; rank < num_ranks; ++rank) {
      const auto batches = Make(examples, micro_batches, rank, num_ranks).MicroBatches(step);
      for (const Batch& batch : *batches) {
        for (int64_t e = 0; e < examples; ++e)
          numbers.insert(batch.Named("example_E")[e].item<int64_t>());
      }
    }
    return numbers;
  }

  static constexpr int kExamples = 21;
  TestFolder folder_;
  PrepareOptions options_;
  ExampleLoaderOptions loader_;
};

TEST_F(ExampleLoaderTest, EveryLayoutSeesTheSameStep) {
  for (int64_t step = 0; step < 6; ++step) {  // Into the third epoch
    const auto whole = Step(8, 1, 1, step);
    EXPECT_EQ(Step(1, 8, 1, step), whole);
    EXPECT_EQ(Step(2, 2, 2, step), whole);
  }
}

TEST_F(ExampleLoaderTest, TargetsAreTheAnswersAndTheirEnd) {
  loader_.shuffle = false;
  const Tokenizer tokenizer = *Tokenizer::Load(options_.model_path);
  const Batch batch = *Make(3, 1, 0, 1).MicroBatches(0)->begin();
  ASSERT_EQ(batch.tokens_BT.size(0), 6);
  int64_t targets = 0;
  for (int64_t row = 0; row < 6; ++row) {
    std::vector<int32_t> read, learnt;
    for (int64_t t = 0; t < batch.tokens_BT.size(1); ++t) {
      const auto target = batch.targets_BT[row][t].item<int64_t>();
      if (target == Batch::kIgnoreIndex) continue;
      ++targets;
      learnt.push_back(static_cast<int32_t>(target));
    }
    ASSERT_FALSE(learnt.empty());
    EXPECT_EQ(learnt.back(), *tokenizer.eos_id());
    learnt.pop_back();
    EXPECT_EQ(tokenizer.Decode(learnt),
              row % 2 == 1 ? "over" : "dogs " + std::string(row / 2 % 4, 'x'));
  }
  EXPECT_EQ(batch.num_targets, targets);
}

TEST_F(ExampleLoaderTest, WholeSequencesEndInTheirLastToken) {
  loader_.shuffle = false;
  loader_.whole = true;
  const Tokenizer tokenizer = *Tokenizer::Load(options_.model_path);
  const Batch batch = *Make(3, 1, 0, 1).MicroBatches(0)->begin();
  for (int64_t row = 0; row < 6; ++row) {
    const auto last = batch.Named("last_B")[row].item<int64_t>();
    EXPECT_EQ(batch.tokens_BT[row][last].item<int64_t>(), *tokenizer.eos_id());
  }
  EXPECT_EQ(batch.num_targets, 0);
}

TEST_F(ExampleLoaderTest, HeldOutExamplesAreTheLastOnesAndFillWholeBatches) {
  loader_.holdout = 0.25;
  std::multiset<int64_t> seen;
  double weight = 0;
  for (int rank = 0; rank < 2; ++rank) {
    const ExampleLoader loader = Make(2, 1, rank, 2);
    EXPECT_EQ(loader.num_examples(), 16);
    EXPECT_EQ(loader.num_held_out(), 5);
    const auto batches = loader.EvalBatches(0);
    EXPECT_EQ(batches->size(), 2u);
    for (const Batch& batch : *batches) {
      weight += batch.Named("weight_E").sum().item<double>();
      for (int64_t e = 0; e < 2; ++e)
        if (batch.Named("weight_E")[e].item<float>() > 0)
          seen.insert(batch.Named("example_E")[e].item<int64_t>());
    }
  }
  EXPECT_EQ(weight, 5);
  EXPECT_THAT(seen, ElementsAre(16, 17, 18, 19, 20));
}

TEST_F(ExampleLoaderTest, MismatchedAnswersAreTheNextExamples) {
  loader_.shuffle = false;
  const auto whole = Make(4, 1, 0, 1).MismatchedBatches(0);
  const auto second = Make(2, 1, 1, 2).MismatchedBatches(0);
  const Tokenizer tokenizer = *Tokenizer::Load(options_.model_path);
  std::vector<int32_t> learnt;
  for (int64_t t = 0; t < whole->front().targets_BT.size(1); ++t) {
    const auto target = whole->front().targets_BT[2][t].item<int64_t>();
    if (target >= 0) learnt.push_back(static_cast<int32_t>(target));
  }
  learnt.pop_back();
  EXPECT_EQ(tokenizer.Decode(learnt), "dogs xxx");
  // The other layout's second rank holds rows 2 and 3.
  const int64_t T = second->front().tokens_BT.size(1);
  EXPECT_TRUE(at::equal(whole->front().tokens_BT.narrow(0, 2, 2).narrow(1, 0, T),
                        second->front().tokens_BT));
}

TEST_F(ExampleLoaderTest, ExamplesWithoutAnAnswerWithinTheLengthAreDropped) {
  loader_.seq_length = 2;
  const auto loader = ExampleLoader::Create(loader_);
  ASSERT_FALSE(loader.ok());
  EXPECT_THAT(std::string(loader.status().message()), HasSubstr("give longer sequences"));
}

TEST_F(ExampleLoaderTest, ErrorsNameTheLine) {
  options_.data.mutable_train(0)->set_path(folder_.Write(
      "bad.jsonl", "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}\n{}\n"));
  const auto prepared = PrepareData(options_);
  ASSERT_FALSE(prepared.ok());
  EXPECT_THAT(std::string(prepared.status().message()),
              HasSubstr("bad.jsonl:2: there is no field"));
}

}  // namespace
}  // namespace shoal
