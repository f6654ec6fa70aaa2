// Legend: M beams, K candidates, V vocabulary.
#include "inference/beam_search.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include <ATen/ATen.h>

namespace shoal {
namespace {

constexpr float kNever = -1e9f;  // The reference's score of what must not be chosen

using Tokens = std::vector<int64_t>;
using EarlyStopping = BeamOptions::EarlyStopping;

struct Beam {
  Tokens tokens;  // Prompt and new ones
  float score;    // Running: sum of log-probabilities; finished: over tokens^length_penalty
  bool finished = false;
  CachedModel::Sequence sequence = -1;
};

// One more token of one of the running beams.
struct Candidate {
  int beam;
  int64_t token;
  float score;
  bool complete;
};

class BeamSearch {
 public:
  BeamSearch(CachedModel& cached, const GenerationRequest& request, const BeamOptions& options)
      : cached_(cached),
        request_(request),
        options_(options),
        prompt_length_(request.prompt.size()),
        max_length_(prompt_length_ + std::min(request.max_new_tokens,
                                              cached.model().max_positions() - prompt_length_)) {
    for (int64_t i = 0; i < options.num_beams; ++i) {
      running_.push_back({.tokens = request.prompt, .score = i == 0 ? 0 : kNever});
      finished_.push_back({.tokens = request.prompt, .score = kNever});
    }
  }

  // The prompt's logits serve all beams, of which the first alone counts.
  void ReadPrompt() {
    const CachedModel::Sequence sequence = cached_.cache().Add();
    const CachedModel::Piece piece{sequence, request_.prompt};
    logits_MV_ = cached_.Read({&piece, 1}).repeat({options_.num_beams, 1});
    running_[0].sequence = sequence;
    for (size_t i = 1; i < running_.size(); ++i)
      running_[i].sequence = cached_.cache().Fork(sequence);
  }

  // False when the search is over.
  absl::StatusOr<bool> Step() {
    SHOAL_ASSIGN_OR_RETURN(const std::vector<Candidate> candidates, Candidates());
    const std::vector<Beam> before = std::move(running_);
    KeepRunning(before, candidates);
    KeepFinished(before, candidates);
    ++length_;
    improvement_possible_ = improvement_possible_ && CanImprove();
    const bool all_finished = std::all_of(finished_.begin(), finished_.end(),
                                          [](const Beam& beam) { return beam.finished; });
    const bool all_complete =
        std::all_of(candidates.begin(), candidates.end(),
                    [](const Candidate& candidate) { return candidate.complete; });
    const bool full = all_finished && options_.early_stopping == EarlyStopping::kYes;
    if (!improvement_possible_ || full || all_complete) return false;
    std::vector<CachedModel::Piece> pieces;
    for (const Beam& beam : running_)
      pieces.push_back({beam.sequence, std::span(beam.tokens).last(1)});
    logits_MV_ = cached_.Read(pieces);
    return true;
  }

  std::vector<BeamResult> Results() const {
    std::vector<BeamResult> results;
    for (int64_t i = 0; i < options_.num_return_sequences; ++i) {
      const Beam& beam = finished_[i];
      BeamResult& result = results.emplace_back();
      result.score = beam.score;
      Tokens& tokens = result.generation.tokens;
      tokens.assign(beam.tokens.begin() + prompt_length_, beam.tokens.end());
      result.generation.finish_reason = ReasonOf(tokens);
    }
    return results;
  }

  void GiveBackCache() {
    for (const Beam& beam : running_) cached_.cache().Remove(beam.sequence);
  }

 private:
  bool IsEos(int64_t token) const {
    const auto& eos = request_.eos_token_ids;
    return std::find(eos.begin(), eos.end(), token) != eos.end();
  }

  FinishReason ReasonOf(const Tokens& tokens) const {
    if (!tokens.empty() && IsEos(tokens.back())) return FinishReason::kEos;
    if (options_.is_complete && options_.is_complete(tokens)) return FinishReason::kStopped;
    return static_cast<int64_t>(tokens.size()) == request_.max_new_tokens
               ? FinishReason::kLength
               : FinishReason::kPositions;
  }

  bool IsComplete(const Beam& beam, int64_t token) const {
    if (IsEos(token) || length_ + 1 >= max_length_) return true;
    if (!options_.is_complete) return false;
    Tokens tokens(beam.tokens.begin() + prompt_length_, beam.tokens.end());
    tokens.push_back(token);
    return options_.is_complete(tokens);
  }

  // The best continuations of all running beams, the best first.
  absl::StatusOr<std::vector<Candidate>> Candidates() {
    Tensor logprobs_MV = at::log_softmax(logits_MV_.to(at::kFloat), -1);
    const int64_t vocabulary = logprobs_MV.size(1);
    Tensor scores_M = at::empty({options_.num_beams, 1}, at::kFloat);
    for (int64_t m = 0; m < options_.num_beams; ++m) {
      float* row = logprobs_MV.mutable_data_ptr<float>() + m * vocabulary;
      SHOAL_RETURN_IF_ERROR(CheckLogits({row, static_cast<size_t>(vocabulary)}));
      if (request_.sampling.repetition_penalty != 1.0) {
        PenalizeRepetition({row, static_cast<size_t>(vocabulary)}, running_[m].tokens,
                           request_.sampling.repetition_penalty);
      }
      scores_M.mutable_data_ptr<float>()[m] = running_[m].score;
    }
    const int64_t count =
        std::max<int64_t>(2, 1 + static_cast<int64_t>(request_.eos_token_ids.size())) *
        options_.num_beams;
    const auto [scores_K, places_K] = at::topk((logprobs_MV + scores_M).view({-1}), count);
    std::vector<Candidate> candidates;
    for (int64_t k = 0; k < count; ++k) {
      const int64_t place = places_K.const_data_ptr<int64_t>()[k];
      const int beam = static_cast<int>(place / vocabulary);
      const int64_t token = place % vocabulary;
      candidates.push_back(
          {beam, token, scores_K.const_data_ptr<float>()[k], IsComplete(running_[beam], token)});
    }
    return candidates;
  }

  static Beam Extended(const Beam& beam, int64_t token, float score) {
    Beam longer{.tokens = beam.tokens, .score = score};
    longer.tokens.push_back(token);
    return longer;
  }

  // The num_beams best that are not complete go on, with their parents' cache.
  void KeepRunning(const std::vector<Beam>& before, const std::vector<Candidate>& candidates) {
    const Tensor scores_K = at::empty({static_cast<int64_t>(candidates.size())}, at::kFloat);
    for (size_t k = 0; k < candidates.size(); ++k) {
      scores_K.mutable_data_ptr<float>()[k] =
          candidates[k].score + (candidates[k].complete ? kNever : 0);
    }
    const auto [best_M, places_M] = at::topk(scores_K, options_.num_beams);
    for (int64_t m = 0; m < options_.num_beams; ++m) {
      const Candidate& candidate = candidates[places_M.const_data_ptr<int64_t>()[m]];
      Beam& beam = running_.emplace_back(
          Extended(before[candidate.beam], candidate.token, best_M.const_data_ptr<float>()[m]));
      beam.sequence = cached_.cache().Fork(before[candidate.beam].sequence);
    }
    for (const Beam& beam : before) cached_.cache().Remove(beam.sequence);
  }

  // Of the first num_beams candidates, those that are complete compete with what is finished.
  void KeepFinished(const std::vector<Beam>& before, const std::vector<Candidate>& candidates) {
    const float tokens = static_cast<float>(
        std::pow(static_cast<double>(length_ + 1 - prompt_length_), options_.length_penalty));
    const bool full = options_.early_stopping == EarlyStopping::kYes &&
                      std::all_of(finished_.begin(), finished_.end(),
                                  [](const Beam& beam) { return beam.finished; });
    std::vector<Beam> pool = std::move(finished_);
    std::vector<float> scores;
    for (const Beam& beam : pool) scores.push_back(beam.score);
    for (size_t k = 0; k < candidates.size(); ++k) {
      const Candidate& candidate = candidates[k];
      const bool ends = candidate.complete && static_cast<int64_t>(k) < options_.num_beams;
      float score = candidate.score / tokens;
      score += full ? kNever : 0;
      score += improvement_possible_ ? 0 : kNever;
      score += ends ? 0 : kNever;
      Beam beam = Extended(before[candidate.beam], candidate.token, score);
      beam.finished = ends;
      pool.push_back(std::move(beam));
      scores.push_back(score);
    }
    const auto [best_M, places_M] = at::topk(at::tensor(scores), options_.num_beams);
    finished_.clear();
    for (int64_t m = 0; m < options_.num_beams; ++m)
      finished_.push_back(std::move(pool[places_M.const_data_ptr<int64_t>()[m]]));
  }

  // The reference's heuristic: can the best running beam still beat the worst finished one?
  bool CanImprove() const {
    const bool to_the_end =
        options_.early_stopping == EarlyStopping::kNever && options_.length_penalty > 0;
    const double tokens =
        static_cast<double>((to_the_end ? max_length_ : length_) - prompt_length_);
    const float best_possible =
        running_[0].score / static_cast<float>(std::pow(tokens, options_.length_penalty));
    float worst = finished_[0].score;
    for (const Beam& beam : finished_) worst = std::min(worst, beam.score);
    return std::any_of(finished_.begin(), finished_.end(), [&](const Beam& beam) {
      return best_possible > (beam.finished ? worst : kNever);
    });
  }

  CachedModel& cached_;
  const GenerationRequest& request_;
  const BeamOptions& options_;
  const int64_t prompt_length_, max_length_;
  int64_t length_ = prompt_length_;  // Of the running beams
  std::vector<Beam> running_;        // The best first
  std::vector<Beam> finished_;       // The best first; those not `finished` stand in
  Tensor logits_MV_;
  bool improvement_possible_ = true;
};

}  // namespace

absl::Status CheckBeamOptions(const GenerationRequest& request, const BeamOptions& options,
                              int64_t vocab_size) {
  if (options.num_beams < 1 || options.num_beams > 1024) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_beams is ", options.num_beams, ", must be in [1, 1024]"));
  }
  if (options.num_return_sequences < 1 || options.num_return_sequences > options.num_beams) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_return_sequences is ", options.num_return_sequences,
                     ", must be in [1, num_beams], which is ", options.num_beams));
  }
  if (!std::isfinite(options.length_penalty)) {
    return absl::InvalidArgumentError(
        absl::StrCat("length_penalty is ", options.length_penalty, ", must be finite"));
  }
  if (request.sampling.temperature != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("temperature is ", request.sampling.temperature,
                     ", but beams are searched, not sampled: leave it at 0, or num_beams at 1"));
  }
  const int64_t kept = std::max<int64_t>(2, 1 + static_cast<int64_t>(request.eos_token_ids.size()));
  if (kept > vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a vocabulary of ", vocab_size, " is too small to keep ", kept, " continuations a beam"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<BeamResult>> RunBeamSearch(CachedModel& cached,
                                                      const GenerationRequest& request,
                                                      const BeamOptions& options,
                                                      GenerationStatistics& statistics) {
  const at::NoGradGuard no_grad;
  const auto start = std::chrono::steady_clock::now();
  BeamSearch search(cached, request, options);
  search.ReadPrompt();
  const auto read = std::chrono::steady_clock::now();
  statistics.prompt_tokens += request.prompt.size();
  statistics.prefill_seconds += std::chrono::duration<double>(read - start).count();
  for (bool more = true; more;) {
    SHOAL_ASSIGN_OR_RETURN(more, search.Step());
    statistics.new_tokens += options.num_beams;
  }
  search.GiveBackCache();
  statistics.decode_seconds +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - read).count();
  return search.Results();
}

}  // namespace shoal
