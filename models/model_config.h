// What a model is made of: its config.json, read through its family's table (models/families/).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/file_system.h"
#include "core/status.h"
#include "models/adapters/lora_options.h"
#include "models/json.h"
#include "models/rope.h"

namespace shoal {

struct ModelFamily;  // models/family.h

enum class Activation { kSilu, kGeluTanh, kGeluErf, kRelu };

// What the last block gives: the next token's distribution, or a score a place (a reward, a value).
enum class HeadKind { kLanguageModel, kScore };

struct ModelConfig {
  std::shared_ptr<const ModelFamily> family;
  // config.json as it was read, keys and order kept, overrides applied. An export writes it back
  // with every key of the family's table present.
  Json json;
  // generation_config.json, if there was one.
  std::optional<Json> generation_json;
  std::string origin;  // The folder it was read from; "" for a model described in a recipe

  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;
  int64_t max_positions = 0;
  Activation activation = Activation::kSilu;
  double norm_epsilon = 0;
  double initializer_range = 0.02;
  // Of image classifiers: square images, pixels whole numbers up to max_pixel.
  int64_t observation_size = 0;  // Numbers of an observation, read instead of tokens; 0: tokens
  int64_t image_size = 0;
  int64_t image_channels = 0;
  int64_t max_pixel = 255;
  // Models of this kind that one pass computes, each on its share of the rows: every weight is
  // (copies, ...), and loss is the sum of the copies' means. Not of config.json.
  int64_t copies = 1;
  // Of families with experts; 0: none.
  int64_t num_experts = 0;
  int64_t experts_per_token = 0;
  double router_balance_loss = 0;        // Weight of the load-balancing loss in training
  int64_t expert_intermediate_size = 0;  // Of one expert; intermediate_size if not given
  int64_t num_shared_experts = 0;        // That every token goes through
  int64_t num_dense_layers = 0;          // The first layers, which have one MLP instead
  // Experts stand in groups of equal size; a token chooses from its best ones.
  int64_t num_expert_groups = 1;
  int64_t expert_groups_per_token = 1;
  bool normalize_expert_weights = true;  // To a sum of one a token,
  double expert_weight_scale = 1;        // times this
  bool attention_bias = false;
  bool mlp_bias = false;
  bool tie_word_embeddings = false;
  bool scale_attention = true;            // By 1 / sqrt(head_dim)
  bool scale_attention_by_layer = false;  // By 1 / (layer + 1) too
  RopeOptions rope;                       // Of families with rotary positions
  // kScore iff `architectures` names a sequence classification; it has then one label.
  HeadKind head = HeadKind::kLanguageModel;
  // Set: the model has adapters beside its own weights, which do not train. Not of config.json.
  std::optional<LoraOptions> lora;

  // Rates in training; inference never drops.
  struct Dropout {
    double embedding = 0;  // Of the sum of the embeddings
    double attention = 0;  // Of the attention's probabilities
    double residual = 0;   // Of what attention and MLP add to the residual stream
    bool any() const { return embedding > 0 || attention > 0 || residual > 0; }
  };
  Dropout dropout;

  bool has_experts(int64_t layer) const { return num_experts > 0 && layer >= num_dense_layers; }
  int64_t num_expert_layers() const { return num_experts > 0 ? num_layers - num_dense_layers : 0; }
  int64_t shared_expert_size() const { return num_shared_experts * expert_intermediate_size; }

  // Of generation_config.json if it has them, else of config.json.
  std::optional<int64_t> bos_token_id, pad_token_id;
  std::vector<int64_t> eos_token_ids;
};

// One thing wrong with a configuration. `key` is its path in config.json: "rope_parameters.factor";
// "" if no key is to blame.
struct ConfigIssue {
  std::string key;
  std::string message;  // Without the key
};

struct ConfigOptions {
  std::string family_file;  // A family of the user's own instead of the compiled-in ones
  // Receives everything wrong, for callers that can point at the line of each key. May be null: the
  // returned status tells the same, one "key: message" after another.
  std::vector<ConfigIssue>* issues = nullptr;
};

// A configuration written by hand (a recipe's model.config): unknown keys are errors that name the
// nearest key, as are unsupported values. `overrides` must be an object with a model_type.
absl::StatusOr<ModelConfig> ModelConfigFromJson(const Json& config,
                                                const ConfigOptions& options = {});

// The same model with a score head: config.json says a sequence classification with one label.
void UseScoreHead(ModelConfig& config);

// `directory`/config.json (and generation_config.json, if there is one) with `overrides` merged
// over it (RFC 7386; null for none). Keys of the file that the family does not know are kept and
// ignored; those of `overrides` are errors. Of a folder of adapters (models/adapters/): its base
// model's, with `lora` set.
absl::StatusOr<ModelConfig> LoadModelConfig(FileSystem& files, const std::string& directory,
                                            const Json& overrides = nullptr,
                                            const ConfigOptions& options = {});

}  // namespace shoal
