// Legend: S sequences of a pass, V vocabulary.
#include "inference/generator.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <new>

#include <ATen/ATen.h>

#include "inference/beam_search.h"
#include "kernels/threads.h"

namespace shoal {
namespace {

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

GenerationStatistics& GenerationStatistics::operator+=(const GenerationStatistics& other) {
  prompt_tokens += other.prompt_tokens;
  new_tokens += other.new_tokens;
  prefill_seconds += other.prefill_seconds;
  decode_seconds += other.decode_seconds;
  return *this;
}

GenerationStatistics GenerationStatistics::operator-(const GenerationStatistics& other) const {
  return {.prompt_tokens = prompt_tokens - other.prompt_tokens,
          .new_tokens = new_tokens - other.new_tokens,
          .prefill_seconds = prefill_seconds - other.prefill_seconds,
          .decode_seconds = decode_seconds - other.decode_seconds};
}

// A request that runs.
struct Generator::Row {
  const GenerationRequest* request;
  Generation* result;
  std::vector<int64_t> tokens;  // Prompt and new ones
  int64_t max_length;           // Of tokens
  CachedModel::Sequence sequence;
  bool done = false;

  // The token after `logits` (V), in which processors work in place.
  absl::StatusOr<TokenChoice> Choose(const Tensor& logits_V) const {
    return ChooseFromRow(logits_V, tokens, request->sampling, request->stream,
                         request->want_logprobs);
  }

  void Take(const TokenChoice& choice) {
    tokens.push_back(choice.token);
    result->tokens.push_back(choice.token);
    if (request->want_logprobs) result->logprobs.push_back(choice.logprob);
    const bool wanted = !request->on_token || request->on_token(choice.token);
    const auto& eos = request->eos_token_ids;
    done = true;
    if (std::find(eos.begin(), eos.end(), choice.token) != eos.end()) {
      result->finish_reason = FinishReason::kEos;
    } else if (!wanted) {
      result->finish_reason = FinishReason::kStopped;
    } else if (static_cast<int64_t>(result->tokens.size()) == request->max_new_tokens) {
      result->finish_reason = FinishReason::kLength;
    } else if (static_cast<int64_t>(tokens.size()) == max_length) {
      result->finish_reason = FinishReason::kPositions;
    } else {
      done = false;
    }
  }
};

// One call of Generate: rows join while there is room and leave when they are done.
class Generator::Run {
 public:
  Run(CachedModel& cached, const Options& options, GenerationStatistics& statistics,
      std::span<const GenerationRequest> requests, std::vector<Generation>& results)
      : cached_(cached),
        max_rows_(std::max<int64_t>(1, options.max_batch_size)),
        statistics_(statistics),
        requests_(requests),
        results_(results) {
    for (const GenerationRequest& request : requests) ++prompts_[request.prompt].waiting;
  }

  absl::Status UntilAllAreDone() {
    while (next_ < requests_.size() || !rows_.empty()) {
      SHOAL_RETURN_IF_ERROR(Join());
      SHOAL_RETURN_IF_ERROR(Step());
    }
    return absl::OkStatus();
  }

 private:
  // A prompt that requests share: read by the first to join, left by the last.
  struct Prompt {
    int64_t waiting = 0;  // Requests that have not joined
    CachedModel::Sequence sequence = -1;
    Tensor logits_V;  // Of the token after it
  };

  absl::Status Join() {
    const auto start = std::chrono::steady_clock::now();
    std::vector<Prompt*> prompts;  // One a row that joins
    std::vector<CachedModel::Piece> unread;
    std::vector<Prompt*> unread_prompts;
    const size_t first = rows_.size();
    for (; next_ < requests_.size() && static_cast<int64_t>(rows_.size()) < max_rows_; ++next_) {
      const GenerationRequest& request = requests_[next_];
      auto& [tokens, prompt] = *prompts_.find(request.prompt);
      if (prompt.sequence < 0) {
        prompt.sequence = cached_.cache().Add();
        unread.push_back({prompt.sequence, tokens});
        unread_prompts.push_back(&prompt);
        statistics_.prompt_tokens += tokens.size();
      }
      const int64_t length = tokens.size();
      const int64_t room =
          std::min(request.max_new_tokens, cached_.model().max_positions() - length);
      rows_.push_back({&request, &results_[next_], tokens, length + room, -1});
      prompts.push_back(&prompt);
    }
    if (prompts.empty()) return absl::OkStatus();
    if (!unread.empty()) {
      const Tensor logits_SV = cached_.Read(unread);
      for (size_t i = 0; i < unread.size(); ++i) unread_prompts[i]->logits_V = logits_SV[i];
    }
    std::vector<Tensor> logits;
    for (size_t i = 0; i < prompts.size(); ++i) {
      Prompt& prompt = *prompts[i];
      const bool last = --prompt.waiting == 0;
      rows_[first + i].sequence = last ? prompt.sequence : cached_.cache().Fork(prompt.sequence);
      logits.push_back(last ? prompt.logits_V : prompt.logits_V.clone());
    }
    SHOAL_RETURN_IF_ERROR(ChooseTokens(std::span(rows_).subspan(first), logits));
    statistics_.prefill_seconds += SecondsSince(start);
    return absl::OkStatus();
  }

  absl::Status Step() {
    if (rows_.empty()) return absl::OkStatus();
    const auto start = std::chrono::steady_clock::now();
    std::vector<CachedModel::Piece> pieces;
    for (const Row& row : rows_) pieces.push_back({row.sequence, std::span(row.tokens).last(1)});
    const Tensor logits_SV = cached_.Read(pieces);
    SHOAL_RETURN_IF_ERROR(ChooseTokens(rows_, logits_SV.unbind()));
    statistics_.decode_seconds += SecondsSince(start);
    return absl::OkStatus();
  }

  // logits[i] is of rows[i]. Rows that are done leave.
  absl::Status ChooseTokens(std::span<Row> rows, const std::vector<Tensor>& logits) {
    std::vector<absl::StatusOr<TokenChoice>> choices(rows.size(), absl::UnknownError(""));
    ParallelFor(rows.size(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) choices[i] = rows[i].Choose(logits[i]);
    });
    for (size_t i = 0; i < rows.size(); ++i) {
      SHOAL_RETURN_IF_ERROR(choices[i].status());
      rows[i].Take(*choices[i]);
      ++statistics_.new_tokens;
      if (rows[i].done) cached_.cache().Remove(rows[i].sequence);
    }
    std::erase_if(rows_, [](const Row& row) { return row.done; });
    return absl::OkStatus();
  }

  CachedModel& cached_;
  const int64_t max_rows_;
  GenerationStatistics& statistics_;
  std::span<const GenerationRequest> requests_;
  std::vector<Generation>& results_;
  std::map<std::vector<int64_t>, Prompt> prompts_;
  std::vector<Row> rows_;
  size_t next_ = 0;  // Request to join
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

// Work with the cached model. What fails leaves no sequence behind.
absl::Status Generator::RunGuarded(const std::function<absl::Status(CachedModel&)>& work) {
  absl::Status status;
  try {
    if (!cached_) cached_ = std::make_unique<CachedModel>(model_, weights_, options_.tensor);
    status = work(*cached_);
  } catch (const c10::OutOfMemoryError& error) {
    status = absl::ResourceExhaustedError(error.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    status = absl::ResourceExhaustedError(
        "no memory left to generate: shorten the prompts, or ask for fewer at once");
  } catch (const c10::Error& error) {
    status = absl::InternalError(error.what_without_backtrace());
  }
  if (!status.ok()) cached_.reset();
  return status;
}

absl::StatusOr<std::vector<Generation>> Generator::Generate(
    std::span<const GenerationRequest> requests) {
  for (size_t i = 0; i < requests.size(); ++i) {
    SHOAL_RETURN_IF_ERROR(Annotate(
        Check(requests[i]), requests.size() == 1 ? "generate" : absl::StrCat("request ", i)));
  }
  std::vector<Generation> results(requests.size());
  SHOAL_RETURN_IF_ERROR(RunGuarded([&](CachedModel& cached) {
    return Run(cached, options_, statistics_, requests, results).UntilAllAreDone();
  }));
  return results;
}

absl::StatusOr<std::vector<BeamResult>> Generator::SearchBeams(const GenerationRequest& request,
                                                               const BeamOptions& options) {
  SHOAL_RETURN_IF_ERROR(Annotate(Check(request), "beam search"));
  SHOAL_RETURN_IF_ERROR(
      Annotate(CheckBeamOptions(request, options, model_.vocab_size()), "beam search"));
  std::vector<BeamResult> results;
  SHOAL_RETURN_IF_ERROR(RunGuarded([&](CachedModel& cached) -> absl::Status {
    SHOAL_ASSIGN_OR_RETURN(results, RunBeamSearch(cached, request, options, statistics_));
    return absl::OkStatus();
  }));
  return results;
}

int64_t Generator::cache_bytes() const {
  return cached_ ? cached_->cache().blocks_held() * cached_->cache().block_bytes() : 0;
}

}  // namespace shoal
