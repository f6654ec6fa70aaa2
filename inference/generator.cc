// Legend: B rows, T places of the prompts, V vocabulary.
#include "inference/generator.h"

#include <algorithm>
#include <chrono>
#include <new>
#include <numeric>

namespace shoal {
namespace {

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

Tensor EmptyIds(int64_t rows, int64_t places) { return at::empty({rows, places}, at::kLong); }

}  // namespace

struct Generator::Row {
  const GenerationRequest* request;
  Generation* result;
  std::vector<int64_t> sequence;  // Prompt and new tokens
  int64_t max_length;             // Of sequence
  bool done = false;

  int64_t length() const { return static_cast<int64_t>(sequence.size()); }

  void Take(int64_t token) {
    sequence.push_back(token);
    result->tokens.push_back(token);
    const bool wanted = !request->on_token || request->on_token(token);
    const auto& eos = request->eos_token_ids;
    done = true;
    if (std::find(eos.begin(), eos.end(), token) != eos.end()) {
      result->finish_reason = FinishReason::kEos;
    } else if (!wanted) {
      result->finish_reason = FinishReason::kStopped;
    } else if (static_cast<int64_t>(result->tokens.size()) == request->max_new_tokens) {
      result->finish_reason = FinishReason::kLength;
    } else if (length() == max_length) {
      result->finish_reason = FinishReason::kPositions;
    } else {
      done = false;
    }
  }
};

Generator::Generator(const Model& model, std::span<const std::vector<Parameter>> weights)
    : Generator(model, weights, Options()) {}

Generator::Generator(const Model& model, std::span<const std::vector<Parameter>> weights,
                     const Options& options)
    : model_(model), weights_(weights), options_(options) {}

absl::Status Generator::Check(const GenerationRequest& request) const {
  if (request.prompt.empty()) return absl::InvalidArgumentError("the prompt holds no token");
  for (size_t i = 0; i < request.prompt.size(); ++i) {
    if (request.prompt[i] < 0 || request.prompt[i] >= model_.vocab_size()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "token ", i, " of the prompt is ", request.prompt[i], ", the vocabulary has ",
          model_.vocab_size(), " entries: model and tokenizer do not belong together"));
    }
  }
  if (static_cast<int64_t>(request.prompt.size()) >= model_.max_positions()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the prompt has ", request.prompt.size(), " tokens, the model has ", model_.max_positions(),
        " positions: shorten it to leave room for new tokens"));
  }
  if (request.max_new_tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_new_tokens is ", request.max_new_tokens, ", must be at least 1"));
  }
  return CheckSamplingOptions(request.sampling);
}

absl::StatusOr<std::vector<Generation>> Generator::Generate(
    std::span<const GenerationRequest> requests) {
  for (size_t i = 0; i < requests.size(); ++i) {
    SHOAL_RETURN_IF_ERROR(Annotate(
        Check(requests[i]), requests.size() == 1 ? "generate" : absl::StrCat("request ", i)));
  }
  // Prompts of like length share a batch, so that little is padded.
  std::vector<size_t> order(requests.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return requests[a].prompt.size() < requests[b].prompt.size();
  });

  at::NoGradGuard no_grad;
  std::vector<Generation> results(requests.size());
  const size_t batch_size = std::max<int64_t>(1, options_.max_batch_size);
  for (size_t first = 0; first < order.size(); first += batch_size) {
    std::vector<Row> rows;
    for (size_t i = first; i < std::min(order.size(), first + batch_size); ++i) {
      const GenerationRequest& request = requests[order[i]];
      const int64_t prompt_length = request.prompt.size();
      const int64_t room = std::min(request.max_new_tokens, model_.max_positions() - prompt_length);
      rows.push_back({&request, &results[order[i]], request.prompt, prompt_length + room});
    }
    try {
      SHOAL_RETURN_IF_ERROR(GenerateBatch(rows));
    } catch (const c10::OutOfMemoryError& error) {
      return absl::ResourceExhaustedError(error.what_without_backtrace());
    } catch (const std::bad_alloc&) {
      return absl::ResourceExhaustedError(
          "no memory left to generate: shorten the prompts, or ask for fewer at once");
    } catch (const c10::Error& error) {
      return absl::InternalError(error.what_without_backtrace());
    }
  }
  return results;
}

absl::Status Generator::GenerateBatch(std::span<Row> rows) {
  const int64_t B = rows.size();
  const ModelConfig& config = model_.config;
  const Tensor& any_weight = weights_[0][0].value;
  int64_t max_length = 0;
  for (const Row& row : rows) max_length = std::max(max_length, row.max_length);
  KeyValueCache cache({.num_layers = config.num_layers,
                       .batch_size = B,
                       .max_length = max_length,
                       .num_key_value_heads = config.num_key_value_heads,
                       .head_dim = config.head_dim,
                       .dtype = any_weight.scalar_type(),
                       .device = any_weight.device()});

  auto start = std::chrono::steady_clock::now();
  Tensor logits_BV = Prefill(rows, cache);
  for (const Row& row : rows) statistics_.prompt_tokens += row.length();
  SHOAL_RETURN_IF_ERROR(ChooseTokens(rows, logits_BV));
  statistics_.prefill_seconds += SecondsSince(start);

  start = std::chrono::steady_clock::now();
  Batch next = {.tokens_BT = EmptyIds(B, 1), .positions_BT = EmptyIds(B, 1)};
  while (!std::all_of(rows.begin(), rows.end(), [](const Row& row) { return row.done; })) {
    logits_BV = Step(rows, cache, next);
    SHOAL_RETURN_IF_ERROR(ChooseTokens(rows, logits_BV));
  }
  statistics_.decode_seconds += SecondsSince(start);
  return absl::OkStatus();
}

// Logits (B, V) float32 of the token after each prompt.
Tensor Generator::Prefill(std::span<Row> rows, KeyValueCache& cache) const {
  const int64_t B = rows.size();
  int64_t T = 0;
  for (const Row& row : rows) T = std::max(T, row.length());
  Batch batch = {.tokens_BT = EmptyIds(B, T),
                 .positions_BT = at::arange(T).unsqueeze(0).repeat({B, 1})};
  Tensor last_B = at::empty({B}, at::kLong);
  for (int64_t b = 0; b < B; ++b) {
    int64_t* tokens = batch.tokens_BT.mutable_data_ptr<int64_t>() + b * T;
    std::copy(rows[b].sequence.begin(), rows[b].sequence.end(), tokens);
    std::fill(tokens + rows[b].length(), tokens + T,
              rows[b].sequence.back());  // Padding: any valid id
    last_B.mutable_data_ptr<int64_t>()[b] = rows[b].length() - 1;
  }
  const Activations out =
      ForwardAll(model_, weights_, batch,
                 {.head_mode = HeadMode::kLogits, .cache = &cache, .only_place_B = last_B});
  for (int64_t b = 0; b < B; ++b) cache.SetLength(b, rows[b].length());
  return out.logits_BTV.select(1, 0).to(at::kCPU, at::kFloat).contiguous();
}

// Reads each row's newest token; logits (B, V) float32 of the one after it. Rows that are done read
// a token again and forget it.
Tensor Generator::Step(std::span<Row> rows, KeyValueCache& cache, Batch& batch) const {
  const int64_t B = rows.size();
  const std::vector<int64_t> lengths = cache.lengths();
  for (int64_t b = 0; b < B; ++b) {
    batch.tokens_BT.mutable_data_ptr<int64_t>()[b] = rows[b].sequence.back();
    batch.positions_BT.mutable_data_ptr<int64_t>()[b] = lengths[b];
  }
  const Activations out =
      ForwardAll(model_, weights_, batch, {.head_mode = HeadMode::kLogits, .cache = &cache});
  for (int64_t b = 0; b < B; ++b) {
    if (rows[b].done) cache.SetLength(b, lengths[b]);
  }
  return out.logits_BTV.select(1, 0).to(at::kCPU, at::kFloat).contiguous();
}

absl::Status Generator::ChooseTokens(std::span<Row> rows, const Tensor& logits_BV) {
  const int64_t V = logits_BV.size(1);
  for (size_t b = 0; b < rows.size(); ++b) {
    if (rows[b].done) continue;
    // Logits are this step's own: they may be changed in place.
    std::span<float> logits(logits_BV.mutable_data_ptr<float>() + b * V, V);
    SHOAL_ASSIGN_OR_RETURN(
        const int64_t token,
        ChooseToken(logits, rows[b].sequence, rows[b].request->sampling, rows[b].request->stream));
    rows[b].Take(token);
    ++statistics_.new_tokens;
  }
  return absl::OkStatus();
}

}  // namespace shoal
