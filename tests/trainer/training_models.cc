#include "tests/trainer/training_models.h"

#include <algorithm>

namespace shoal {

Json ConfigOf(const std::string& model, int layers, int64_t seq_length) {
  const int64_t positions = std::max<int64_t>(16, seq_length);
  if (model.starts_with("gpt2")) {
    const double rate = model == "gpt2-dropout" ? 0.2 : 0;
    return {{"model_type", "gpt2"}, {"vocab_size", kTestVocabulary},
            {"n_embd", 12},         {"n_layer", layers},
            {"n_head", 3},          {"n_positions", positions},
            {"resid_pdrop", rate},  {"embd_pdrop", rate},
            {"attn_pdrop", rate}};
  }
  if (model.starts_with("mixtral")) {
    // -many: experts that no token chooses; -all: experts that all tokens choose.
    const int experts = model == "mixtral-many" ? 32 : 4;
    const int choices = model == "mixtral-many" ? 1 : model == "mixtral-all" ? 4 : 2;
    return {{"model_type", "mixtral"},
            {"vocab_size", kTestVocabulary},
            {"hidden_size", 12},
            {"intermediate_size", 7},
            {"num_hidden_layers", layers},
            {"num_attention_heads", 4},
            {"num_key_value_heads", 2},
            {"head_dim", 4},
            {"max_position_embeddings", positions},
            {"initializer_range", 0.2},
            {"num_local_experts", experts},
            {"num_experts_per_tok", choices},
            {"router_aux_loss_coef", 0.05}};
  }
  if (model.starts_with("dots1")) {
    // -all: experts that all tokens choose. -free: no loss balances.
    const bool all = model == "dots1-all";
    return {{"model_type", "dots1"},
            {"vocab_size", kTestVocabulary},
            {"hidden_size", 12},
            {"intermediate_size", 17},
            {"moe_intermediate_size", 6},
            {"num_hidden_layers", layers},
            {"first_k_dense_replace", 1},
            {"num_attention_heads", 4},
            {"num_key_value_heads", 2},
            {"head_dim", 4},
            {"max_position_embeddings", 64},
            {"initializer_range", 0.2},
            {"n_routed_experts", all ? 4 : 8},
            {"n_shared_experts", 2},
            {"num_experts_per_tok", all ? 4 : 3},
            {"n_group", all ? 1 : 4},
            {"topk_group", all ? 1 : 2},
            {"norm_topk_prob", true},
            {"routed_scaling_factor", 1.5},
            {"aux_loss_alpha", model == "dots1-free" ? 0.0 : 0.05}};
  }
  return {{"model_type", "llama"},
          {"vocab_size", kTestVocabulary},
          {"hidden_size", 12},
          {"intermediate_size", 17},
          {"num_hidden_layers", layers},
          {"num_attention_heads", model == "llama-uneven" ? 6 : 4},
          {"num_key_value_heads", model == "llama-uneven" ? 3 : 2},
          {"head_dim", 4},
          {"max_position_embeddings", positions},
          {"rms_norm_eps", 1e-5},
          {"attention_dropout", model == "llama-dropout" ? 0.2 : 0.0},
          {"tie_word_embeddings", model == "llama-tied"}};
}

}  // namespace shoal
