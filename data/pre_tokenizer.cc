#include "data/pre_tokenizer.h"

#include "core/status.h"

namespace shoal {
namespace {

struct Piece {
  Span span;
  bool is_match;
};

// Matches and what is between them, in order.
std::vector<Piece> WithGaps(size_t size, const std::vector<Span>& matches, bool invert) {
  std::vector<Piece> pieces;
  size_t end = 0;
  for (const Span& match : matches) {
    if (match.begin > end) pieces.push_back({{end, match.begin}, invert});
    pieces.push_back({match, !invert});
    end = match.end;
  }
  if (end < size) pieces.push_back({{end, size}, invert});
  return pieces;
}

// Joins each piece for which `joins(piece, previous_is_match)` to the one before it.
template <typename Joins>
std::vector<Span> Join(const std::vector<Piece>& pieces, Joins joins) {
  std::vector<Span> out;
  bool previous_is_match = false;
  for (const Piece& piece : pieces) {
    if (!out.empty() && joins(piece.is_match, previous_is_match)) {
      out.back().end = piece.span.end;
    } else {
      out.push_back(piece.span);
    }
    previous_is_match = piece.is_match;
  }
  return out;
}

// A match takes the piece after it, unless that is a match too.
std::vector<Span> JoinWithNext(const std::vector<Piece>& pieces) {
  std::vector<Span> out;
  bool open = false;
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (open) {
      out.back().end = pieces[i].span.end;
    } else {
      out.push_back(pieces[i].span);
    }
    open = pieces[i].is_match && i + 1 < pieces.size() && !pieces[i + 1].is_match;
  }
  return out;
}

std::vector<Span> Apply(SplitBehavior behavior, const std::vector<Piece>& pieces) {
  switch (behavior) {
    case SplitBehavior::kIsolated:
      return Join(pieces, [](bool, bool) { return false; });
    case SplitBehavior::kContiguous:
      return Join(pieces, [](bool match, bool previous) { return match == previous; });
    case SplitBehavior::kMergedWithPrevious:
      return Join(pieces, [](bool match, bool previous) { return match && !previous; });
    case SplitBehavior::kMergedWithNext:
      return JoinWithNext(pieces);
    case SplitBehavior::kRemoved:
      break;
  }
  std::vector<Span> out;
  for (const Piece& piece : pieces) {
    if (!piece.is_match) out.push_back(piece.span);
  }
  return out;
}

void Push(absl::string_view piece, const Span& span, std::vector<absl::string_view>& out) {
  if (span.end > span.begin) out.push_back(piece.substr(span.begin, span.end - span.begin));
}

absl::Status SplitPiece(const SplitStage& stage, absl::string_view piece,
                        PreTokenizer::Words& scratch, std::vector<absl::string_view>& out) {
  if (stage.pattern == nullptr) {
    out.push_back(piece);
    return absl::OkStatus();
  }
  scratch.matches.clear();
  SHOAL_RETURN_IF_ERROR(stage.pattern->FindAll(piece, scratch.matches));
  if (stage.pattern->covers_all() && stage.behavior == SplitBehavior::kIsolated) {
    for (const Span& match : scratch.matches) Push(piece, match, out);
    return absl::OkStatus();
  }
  const std::vector<Piece> pieces = WithGaps(piece.size(), scratch.matches, stage.invert);
  for (const Span& span : Apply(stage.behavior, pieces)) Push(piece, span, out);
  return absl::OkStatus();
}

}  // namespace

absl::Status PreTokenizer::Split(absl::string_view text, bool continues_text, Words& out) const {
  out.words.clear();
  out.prefixed.clear();
  if (text.empty()) return absl::OkStatus();
  out.words.push_back(text);
  std::vector<absl::string_view> pieces;
  for (const SplitStage& stage : stages_) {
    pieces.swap(out.words);
    out.words.clear();
    for (absl::string_view piece : pieces) {
      const bool starts_text = piece.data() == text.data();
      if (stage.prefix_space && piece[0] != ' ' && !(starts_text && continues_text)) {
        piece = out.prefixed.emplace_back(absl::StrCat(" ", piece));
      }
      SHOAL_RETURN_IF_ERROR(SplitPiece(stage, piece, out, out.words));
    }
  }
  return absl::OkStatus();
}

}  // namespace shoal
