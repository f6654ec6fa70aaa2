#include "parallel/context_parallel.h"

#include <ATen/ATen.h>

#include "core/status.h"

namespace shoal {

int64_t ContextParallel::PieceBegin(int rank, int half, int64_t own) const {
  const int piece = half == 0 ? rank : 2 * size() - 1 - rank;
  return piece * (own / 2);
}

Tensor ContextParallel::Places(int64_t own) const {
  const auto piece = [&](int half) {
    const int64_t begin = PieceBegin(rank(), half, own);
    return at::arange(begin, begin + own / 2, at::kLong);
  };
  return at::cat({piece(0), piece(1)});
}

Batch ContextParallel::OwnPlaces(const Batch& whole) const {
  const int64_t T = whole.tokens_BT.size(1);
  SHOAL_CHECK(T % (2 * size()) == 0)
      << T << " places over " << size() << " ranks, expected a multiple of " << 2 * size();
  const Tensor places = Places(T / size());
  const auto own = [&](const Tensor& x_BT) { return x_BT.index_select(1, places); };
  Batch batch;
  batch.tokens_BT = own(whole.tokens_BT);
  batch.targets_BT = own(whole.targets_BT);
  batch.positions_BT = own(whole.positions_BT);
  if (whole.documents_BT.defined()) {
    const Tensor starts = DocumentStarts(whole.documents_BT);
    batch.documents_BT = method_ == Method::kRing ? own(starts) : starts;
  }
  batch.sequences_B = whole.sequences_B;
  batch.num_targets = batch.targets_BT.ne(Batch::kIgnoreIndex).sum().item<int64_t>();
  batch.named = whole.named;
  return batch;
}

Tensor ContextParallel::AllPieces(const Tensor& own_B2X) const {
  const int64_t c = size();
  const Tensor own_2BX = own_B2X.transpose(0, 1).contiguous();
  std::vector<int64_t> sizes = own_2BX.sizes().vec();
  sizes[0] *= c;
  const Tensor by_rank = at::empty(sizes, own_2BX.options());  // Rank after rank, two pieces each
  Tensor flat = by_rank.view({-1});
  comm_.AllGather(flat, own_2BX.view({-1}));
  std::vector<int64_t> place(2 * c);
  for (int64_t piece = 0; piece < c; ++piece) {
    place[piece] = 2 * piece;
    place[2 * c - 1 - piece] = 2 * piece + 1;
  }
  return by_rank.index_select(0, at::tensor(place)).transpose(0, 1).contiguous();
}

Tensor ContextParallel::OwnPieces(const Tensor& all_BPX) const {
  return all_BPX.index_select(1, at::tensor({int64_t{rank()}, int64_t{2 * size() - 1 - rank()}}));
}

Tensor ContextParallel::Attention(const Tensor& q_BtNH, const Tensor& k_BtKH, const Tensor& v_BtKH,
                                  const AttentionOptions& options) const {
  return method_ == Method::kRing ? RingAttention(*this, q_BtNH, k_BtKH, v_BtKH, options)
                                  : UlyssesAttention(*this, q_BtNH, k_BtKH, v_BtKH, options);
}

}  // namespace shoal
