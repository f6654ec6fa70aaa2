// A family of models as data: how config.json's keys map to what the blocks need, which blocks make
// the stack, and what the weights are called on disk. See docs/families.md and families/*.yaml.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/file_system.h"
#include "core/status.h"

namespace shoal {

// How the stack is made of blocks.
struct StackOptions {
  // A decoder of text, described by the rest; or convolutions over pixels, a dense layer and
  // classes (models/blocks/image_classifier.h).
  enum class Kind { kDecoder, kImageClassifier };
  enum class Positions { kRotary, kLearned };
  enum class Norm { kRms, kLayer };
  enum class Attention { kSplit, kFused };      // q, k and v: three matrices, or one
  enum class Mlp { kGated, kPlain, kExperts };  // kExperts: a router, and gated ones

  // Of kExperts. An expert's score is its share of a softmax; or a sigmoid, to which a bias is
  // added where experts are chosen (Wang et al. 2024; DeepSeek-AI 2024).
  enum class Router { kSoftmax, kBiasedSigmoid };
  enum class QkNorm { kNone, kHead };  // kHead: q and k are normed, each head by itself

  enum class Linear { kOutIn, kInOut };  // A matrix on disk: (out, in), or (in, out)
  // kDepthScaled: matrices that write to the residual stream start smaller, by 1 / sqrt(2 layers).
  enum class ResidualInit { kPlain, kDepthScaled };

  Kind kind = Kind::kDecoder;
  Positions positions;
  Norm norm;
  Attention attention;
  Mlp mlp;
  Router router = Router::kSoftmax;
  QkNorm qk_norm = QkNorm::kNone;
  Linear linear;
  ResidualInit residual_init;
};

struct ModelFamily {
  std::string source;  // "families/llama.yaml", or the user's file
  std::string model_type;
  std::string architecture;  // The class that opens an export: "LlamaForCausalLM"
  std::string prefix;        // Of most weight names: "model."

  // A value of ModelConfig: read from `key`, else `fallback`. No key: always the fallback. A
  // fallback is a number, a word, the name of an earlier value, or "a * b" or "a / b" of numbers
  // and names.
  struct Value {
    std::string name;
    std::string key;
    std::string fallback;
  };
  std::vector<Value> values;

  // Where rotary positions' settings stand, in both dialects; set iff stack.positions is kRotary.
  struct RopeKeys {
    std::string parameters;  // transformers 5: {rope_type, rope_theta, ...}
    std::string scaling;  // transformers 4: {rope_type, ...} beside theta; wins if both are there
    std::string theta;
    double default_theta = 10000;
  };
  std::optional<RopeKeys> rope;

  struct DropoutKey {
    std::string key;      // Of the rate in training
    double fallback = 0;  // Where config.json does not give it
  };
  std::map<std::string, DropoutKey> dropout;  // By place: embedding, attention or residual
  // Key, the one value of it that the blocks support, as JSON; a list of one: the one value of its
  // items.
  std::map<std::string, std::string> only;
  std::vector<std::string> ignored;  // Keys that change nothing here

  StackOptions stack;

  // Slot of a block ("layer.q.weight") to name on disk, {i}: layer, {e}: expert
  std::map<std::string, std::string> weights;
  std::vector<std::string> ignored_weights;  // Names on disk, {i}: layer
  std::vector<std::string> lora_targets;  // Modules that adapters attach to by default, as in peft
  std::map<std::string, std::string>
      tensor_parallel;  // Module ({i}: layer) to style, in Hugging Face's words

  // The name on disk, or "" if the family has none for the slot.
  std::string WeightName(const std::string& slot, int64_t layer = 0, int64_t expert = 0) const;
  bool IgnoresWeight(const std::string& name) const;
};

// Errors name source:line:column, all at once.
absl::StatusOr<std::shared_ptr<const ModelFamily>> ParseFamily(const std::string& text,
                                                               const std::string& source);
absl::StatusOr<std::shared_ptr<const ModelFamily>> LoadFamily(FileSystem& files,
                                                              const std::string& path);
// A family that is compiled in. NotFound lists those there are.
absl::StatusOr<std::shared_ptr<const ModelFamily>> FindFamily(const std::string& model_type);
std::vector<std::string> KnownFamilies();

// The values that a family's `config` section may set, and those it must.
const std::vector<std::string>& ModelValueNames();
bool IsRequiredModelValue(const std::string& name);          // Of a decoder
bool IsExpertValue(const std::string& name, bool required);  // Of stack.mlp: experts alone
bool IsImageClassifierValue(const std::string& name);

}  // namespace shoal
