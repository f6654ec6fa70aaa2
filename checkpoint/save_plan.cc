#include "checkpoint/save_plan.h"

#include <algorithm>
#include <map>
#include <unordered_map>

#include "absl/strings/ascii.h"
#include "absl/strings/str_join.h"

#include "checkpoint/manifest.h"
#include "core/dtype.h"
#include "models/safetensors.h"

namespace shoal {
namespace {

using Piece = PieceList::Piece;

constexpr size_t kMaxNameBytes = 512;

struct Holder {
  int rank;
  int piece;
};

// One tensor as the ranks together hold it.
struct TensorHolders {
  const Piece* first = nullptr;  // of the first rank that names it
  int first_rank = 0, first_index = 0;
  std::map<std::pair<int64_t, int64_t>, std::vector<Holder>>
      ranges;  // (begin, end) -> who holds just that
};

std::string ShapeText(const Piece& piece) {
  return absl::StrCat("(", absl::StrJoin(piece.shape(), ", "), ")");
}

int64_t PieceElementBytes(const Piece& piece) {
  return ElementBytes(*DtypeOfSafetensors(piece.dtype()));
}

absl::Status AddPiece(const Piece& piece, int rank, int index, TensorHolders* tensor) {
  if (!tensor->first)
    *tensor = {.first = &piece, .first_rank = rank, .first_index = index, .ranges = {}};
  const Piece& first = *tensor->first;
  if (piece.dtype() != first.dtype() || !std::equal(piece.shape().begin(), piece.shape().end(),
                                                    first.shape().begin(), first.shape().end())) {
    return absl::InvalidArgumentError(absl::StrCat(
        piece.name(), " is ", piece.dtype(), " ", ShapeText(piece), " on rank ", rank, " but ",
        first.dtype(), " ", ShapeText(first), " on rank ", tensor->first_rank));
  }
  const auto numel = CheckedNumel(piece.shape());
  if (!numel || piece.begin() < 0 || piece.end() < piece.begin() || piece.end() > *numel) {
    return absl::InvalidArgumentError(absl::StrCat(piece.name(), ": rank ", rank,
                                                   " holds elements [", piece.begin(), ", ",
                                                   piece.end(), ") of shape ", ShapeText(piece)));
  }
  if (piece.begin() == piece.end()) return absl::OkStatus();
  auto& holders = tensor->ranges[{piece.begin(), piece.end()}];
  if (!holders.empty() && holders.back().rank == rank) {
    return absl::InvalidArgumentError(absl::StrCat(piece.name(), ": rank ", rank,
                                                   " lists elements [", piece.begin(), ", ",
                                                   piece.end(), ") twice"));
  }
  holders.push_back({rank, index});
  return absl::OkStatus();
}

absl::Status CheckTiling(const TensorHolders& tensor) {
  int64_t next = 0;
  for (const auto& [range, holders] : tensor.ranges) {
    if (range.first < next) {
      return absl::InvalidArgumentError(absl::StrCat(
          tensor.first->name(), ": elements [", range.first, ", ", range.second, ") of rank ",
          holders[0].rank, " overlap another piece, which ends at ", next));
    }
    if (range.first > next) break;
    next = range.second;
  }
  if (next == *CheckedNumel(tensor.first->shape())) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(tensor.first->name(), ": no rank holds element ",
                                                 next, " of shape ", ShapeText(*tensor.first)));
}

// One tensor in one file is one entry under its name, or several with their ranges after it.
void NameEntries(const PieceList& held, std::vector<PlannedPiece>& plan) {
  std::unordered_map<std::string, int> uses;
  for (const PlannedPiece& planned : plan) ++uses[held.pieces(planned.piece).name()];
  for (PlannedPiece& planned : plan) {
    const Piece& piece = held.pieces(planned.piece);
    const int64_t numel = piece.end() - piece.begin();
    planned.entry_name = piece.name();
    if (uses[piece.name()] > 1)
      absl::StrAppend(&planned.entry_name, "[", piece.begin(), ":", piece.end(), "]");
    if (numel == *CheckedNumel(piece.shape())) {
      planned.entry_shape.assign(piece.shape().begin(), piece.shape().end());
    } else {
      planned.entry_shape = {numel};
    }
  }
}

}  // namespace

absl::StatusOr<PieceList> DescribePieces(absl::Span<const StatePiece> pieces) {
  PieceList list;
  for (const StatePiece& piece : pieces) {
    const bool control = std::any_of(piece.name.begin(), piece.name.end(),
                                     [](char c) { return absl::ascii_iscntrl(c); });
    if (piece.name.empty() || piece.name.size() > kMaxNameBytes || control ||
        piece.name == "__metadata__") {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", piece.name, "\" cannot be a tensor's name"));
    }
    Piece* described = list.add_pieces();
    described->set_name(piece.name);
    for (const int64_t size : piece.shape) described->add_shape(size);
    described->set_begin(piece.begin);
    described->set_end(piece.begin);
    if (!piece.data.defined()) continue;
    const std::string dtype = SafetensorsDtype(piece.data.scalar_type());
    if (dtype.empty())
      return absl::InvalidArgumentError(absl::StrCat(piece.name, ": no such dtype in safetensors"));
    if (!piece.data.is_contiguous())
      return absl::InvalidArgumentError(absl::StrCat(piece.name, " is not contiguous"));
    described->set_dtype(dtype);
    described->set_end(piece.begin + piece.data.numel());
  }
  return list;
}

absl::StatusOr<std::vector<std::vector<PlannedPiece>>> PlanSave(absl::Span<const PieceList> held) {
  std::vector<TensorHolders> tensors;  // in order of first appearance
  std::unordered_map<std::string, size_t> index_of;
  for (size_t rank = 0; rank < held.size(); ++rank) {
    for (int i = 0; i < held[rank].pieces_size(); ++i) {
      const Piece& piece = held[rank].pieces(i);
      if (piece.dtype().empty()) continue;
      const auto [entry, is_new] = index_of.emplace(piece.name(), tensors.size());
      if (is_new) tensors.emplace_back();
      SHOAL_RETURN_IF_ERROR(AddPiece(piece, static_cast<int>(rank), i, &tensors[entry->second]));
    }
  }
  for (const PieceList& list : held) {
    for (const Piece& piece : list.pieces()) {
      if (index_of.count(piece.name()) == 0) {
        return absl::InvalidArgumentError(absl::StrCat(piece.name(), ": no rank holds any of it"));
      }
    }
  }

  std::vector<std::vector<PlannedPiece>> plan(held.size());
  std::vector<int64_t> bytes(held.size());
  const auto add = [&](int rank, int piece) {
    plan[rank].push_back({.piece = piece, .entry_name = {}, .entry_shape = {}});
  };
  for (const TensorHolders& tensor : tensors) {
    SHOAL_RETURN_IF_ERROR(CheckTiling(tensor));
    if (tensor.ranges.empty()) add(tensor.first_rank, tensor.first_index);
    for (const auto& [range, holders] : tensor.ranges) {
      const Holder writer = *std::min_element(
          holders.begin(), holders.end(),
          [&](const Holder& a, const Holder& b) { return bytes[a.rank] < bytes[b.rank]; });
      add(writer.rank, writer.piece);
      bytes[writer.rank] += (range.second - range.first) * PieceElementBytes(*tensor.first);
    }
  }
  for (size_t rank = 0; rank < held.size(); ++rank) NameEntries(held[rank], plan[rank]);
  return plan;
}

}  // namespace shoal
