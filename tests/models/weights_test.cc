#include "models/weights.h"

#include "core/memory_file_system.h"
#include "tests/models/fixture.h"

namespace shoal {
namespace {

// A folder in memory with the fixture's weights, some renamed, added, left out.
class WeightReaderTest : public testing::Test {
 protected:
  void SetUp() override {
    SHOAL_CHECK(files_.CreateDirectory("m").ok());
    const auto stored = ValueOrDie(SafetensorsReader::Open(posix_, Path()));
    for (const SafetensorsEntry& entry : stored->tensors()) {
      tensors_[entry.name] = ReadTensor(*stored, entry.name);
    }
  }

  std::string Path() const { return fixture_.directory + "/model.safetensors"; }

  absl::StatusOr<WeightReader> Open() {
    SHOAL_CHECK(WriteSafetensors(files_, "m/model.safetensors", tensors_).ok());
    return WeightReader::Open(files_, "m", fixture_.model);
  }

  void ExpectError(const std::string& expected) {
    const absl::Status status = Open().status();
    EXPECT_NE(std::string(status.message()).find(expected), std::string::npos) << status;
  }

  void Rename(const std::string& from, const std::string& to) {
    auto node = tensors_.extract(from);
    node.key() = to;
    tensors_.insert(std::move(node));
  }

  PosixFileSystem posix_;
  MemoryFileSystem files_;
  Fixture fixture_ = LoadFixture("gpt2");
  std::map<std::string, Tensor> tensors_;
};

TEST_F(WeightReaderTest, ReadsOnlyTheBytesAskedFor) {
  const WeightReader reader = ValueOrDie(Open());
  EXPECT_EQ(reader.bytes_read(), 0);
  int64_t elements = 0;
  for (const ParameterSpec& spec : fixture_.model.unique_parameters()) {
    const int64_t begin = spec.numel() / 3, n = spec.numel() / 2;
    Tensor out = at::empty({n}, at::kFloat);
    ASSERT_TRUE(reader.Read(spec, begin, out).ok());
    EXPECT_TRUE(
        at::equal(out, tensors_.at(spec.name).view({-1}).narrow(0, begin, n).to(at::kFloat)))
        << spec.name;
    elements += n;
  }
  EXPECT_EQ(reader.bytes_read(), 8 * elements);
}

TEST_F(WeightReaderTest, ReadsInTheOrderOfMemory) {
  const WeightReader reader = ValueOrDie(Open());
  int transposed = 0;
  for (const ParameterSpec& spec : fixture_.model.unique_parameters()) {
    const int64_t begin = spec.numel() / 3, n = spec.numel() / 2, before = reader.bytes_read();
    const Tensor& stored = tensors_.at(spec.name);
    const Tensor elements = (spec.transposed() ? stored.t() : stored).reshape({-1});
    Tensor out = at::empty({n}, at::kFloat);
    ASSERT_TRUE(reader.ReadInMemoryOrder(spec, begin, out).ok());
    EXPECT_TRUE(at::equal(out, elements.narrow(0, begin, n).to(at::kFloat))) << spec.name;
    // At most what is left of the first and the last column on top.
    const int64_t slack = spec.transposed() ? 2 * spec.shape[0] : 0;
    EXPECT_LE(reader.bytes_read() - before, 8 * (n + slack)) << spec.name;
    transposed += spec.transposed();
  }
  EXPECT_GT(transposed, 0);
}

TEST_F(WeightReaderTest, TakesNamesWithoutThePrefix) {
  const std::string prefix = "transformer.";
  std::map<std::string, Tensor> bare;
  for (const auto& [name, tensor] : tensors_) bare[name.substr(prefix.size())] = tensor;
  bare["h.0.attn.bias"] = at::ones({1, 1, 4, 4});  // A buffer of old files
  tensors_ = bare;
  EXPECT_TRUE(Open().ok()) << Open().status();
}

TEST_F(WeightReaderTest, ListsWhatDoesNotFit) {
  tensors_.erase("transformer.wpe.weight");
  tensors_["transformer.h.7.ln_1.weight"] = at::ones({12});
  tensors_["transformer.ln_f.bias"] = at::ones({13});
  ExpectError(
      "missing: transformer.wpe.weight; not in the model: transformer.h.7.ln_1.weight; wrong: "
      "transformer.ln_f.bias is (13), the configuration says (12)");
}

TEST_F(WeightReaderTest, RefusesIntegerWeights) {
  tensors_["transformer.ln_f.bias"] = at::ones({12}, at::kInt);
  ExpectError("transformer.ln_f.bias has dtype I32");
}

TEST_F(WeightReaderTest, ATiedHeadMayBeStoredTwice) {
  tensors_["lm_head.weight"] = tensors_["transformer.wte.weight"].clone();
  EXPECT_TRUE(Open().ok());
  tensors_["lm_head.weight"][3][4] += 1;
  ExpectError("lm_head.weight and transformer.wte.weight differ, but the configuration ties them");
  tensors_.erase("transformer.wte.weight");
  EXPECT_TRUE(Open().ok());
}

TEST_F(WeightReaderTest, ReadsShardsThroughTheirIndex) {
  std::map<std::string, Tensor> halves[2];
  Json map = Json::object();
  int i = 0;
  for (const auto& [name, tensor] : tensors_) {
    halves[i % 2][name] = tensor;
    map[name] = absl::StrCat("part-", i++ % 2);
  }
  for (int half : {0, 1}) {
    ASSERT_TRUE(WriteSafetensors(files_, absl::StrCat("m/part-", half), halves[half]).ok());
  }
  const std::string index = "m/model.safetensors.index.json";
  ASSERT_TRUE(WriteFileAtomically(files_, index, Json({{"weight_map", map}}).dump()).ok());
  EXPECT_TRUE(WeightReader::Open(files_, "m", fixture_.model).ok());
  map["transformer.wte.weight"] = "../../etc/passwd";
  ASSERT_TRUE(WriteFileAtomically(files_, index, Json({{"weight_map", map}}).dump()).ok());
  const absl::Status status = WeightReader::Open(files_, "m", fixture_.model).status();
  EXPECT_NE(std::string(status.message()).find("names no file here"), std::string::npos) << status;
}

TEST_F(WeightReaderTest, AFolderWithoutWeightsSaysSo) {
  const absl::Status status = WeightReader::Open(files_, "m", fixture_.model).status();
  EXPECT_EQ(status.message(), "m has neither model.safetensors nor model.safetensors.index.json");
}

TEST(InitializeTest, SlicesAreTheWholesParts) {
  const Model model =
      ValueOrDie(BuildModel(ValueOrDie(ModelConfigFromJson({{"model_type", "gpt2"},
                                                            {"n_embd", 64},
                                                            {"n_layer", 8},
                                                            {"n_head", 4},
                                                            {"vocab_size", 500}}))));
  const ModelWeights weights = InitializeAllWeights(model, 11, at::kFloat);
  for (size_t b = 0; b < weights.size(); ++b) {
    for (size_t i = 0; i < weights[b].size(); ++i) {
      const ParameterSpec& spec = model.blocks[b]->parameters()[i];
      const Tensor& value = weights[b][i].value;
      const Tensor whole = (spec.transposed() ? value.t() : value).reshape({-1});
      const int64_t begin = spec.numel() / 5 + 1, n = spec.numel() / 3;
      Tensor slice = at::empty({n});
      InitializeSlice(spec, 11, begin, slice);
      EXPECT_TRUE(at::equal(slice, whole.narrow(0, begin, n))) << spec.name;
    }
  }
  // As transformers starts GPT-2: 0.02, and 0.02 / sqrt(2 layers) where a layer writes to the
  // residual stream.
  const auto deviation = [&](size_t parameter) {
    return weights[1][parameter].value.std().item<double>();
  };
  EXPECT_NEAR(deviation(2), 0.02, 0.001);                       // c_attn
  EXPECT_NEAR(deviation(4), 0.005, 0.0003);                     // c_proj
  EXPECT_EQ(weights[1][0].value.min().item<float>(), 1);        // ln_1.weight
  EXPECT_EQ(weights[1][3].value.abs().max().item<float>(), 0);  // c_attn.bias
}

}  // namespace
}  // namespace shoal
