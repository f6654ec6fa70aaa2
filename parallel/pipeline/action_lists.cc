#include "parallel/pipeline/action_lists.h"

#include <algorithm>

// Interleaved and zbv lists are made for a count of micro-batches at which they are regular, then
// some micro-batches are left out. No deadlock comes of that: what is left keeps its order, and no
// action needs an action of another micro-batch.
namespace shoal {
namespace {

using enum Action::Kind;

}  // namespace

std::vector<Action> GpipeList(const ListSize& size) {
  std::vector<Action> actions;
  for (int i = 0; i < size.micro_batches; ++i) actions.push_back({kForward, 0, i});
  for (int i = 0; i < size.micro_batches; ++i) actions.push_back({kBackward, 0, i});
  return actions;
}

std::vector<Action> OneFOneBList(const ListSize& size) {
  const int m = size.micro_batches;
  const int warm_up = std::min(m, size.ranks - size.rank - 1);
  std::vector<Action> actions;
  for (int i = 0; i < warm_up; ++i) actions.push_back({kForward, 0, i});
  for (int i = 0; i < m; ++i) {
    if (warm_up + i < m) actions.push_back({kForward, 0, warm_up + i});
    actions.push_back({kBackward, 0, i});
  }
  return actions;
}

std::vector<Action> InterleavedList(const ListSize& size, int chunks) {
  if (chunks == 1) return OneFOneBList(size);
  const int p = size.ranks;
  const int m = size.micro_batches;
  const int groups = std::max(1, m / p);
  const int group_size = (m + groups - 1) / groups;
  const int passes = groups * group_size * chunks;
  const int warm_up = std::min(passes, 2 * (p - size.rank - 1) + (chunks - 1) * group_size);

  std::vector<Action> actions;
  const auto add = [&](Action::Kind kind, int pass) {
    const int group = pass / (group_size * chunks);
    const int chunk = pass / group_size % chunks;
    const int i = pass % group_size;
    const int larger_groups = m % groups;
    if (i >= m / groups + (group < larger_groups ? 1 : 0)) return;
    const int micro_batch = group * (m / groups) + std::min(group, larger_groups) + i;
    actions.push_back({kind, kind == kForward ? chunk : chunks - 1 - chunk, micro_batch});
  };
  for (int pass = 0; pass < warm_up; ++pass) add(kForward, pass);
  for (int pass = 0; pass < passes; ++pass) {
    if (warm_up + pass < passes) add(kForward, warm_up + pass);
    add(kBackward, pass);
  }
  return actions;
}

std::vector<Action> ZbH1List(const ListSize& size) {
  const int m = size.micro_batches;
  const int warm_up = std::min(m, size.ranks - size.rank - 1);
  std::vector<Action> actions;
  int weights = 0;
  for (int i = 0; i < warm_up; ++i) actions.push_back({kForward, 0, i});
  for (int i = 0; i < m; ++i) {
    if (warm_up + i < m) actions.push_back({kForward, 0, warm_up + i});
    actions.push_back({kBackwardInput, 0, i});
    if (i >= size.rank) actions.push_back({kBackwardWeight, 0, weights++});
  }
  while (weights < m) actions.push_back({kBackwardWeight, 0, weights++});
  return actions;
}

std::vector<Action> ZbVList(const ListSize& size) {
  const int p = size.ranks;
  const int r = size.rank;
  // Below 2 p - 1 micro-batches the start alone would take more than there are.
  const int m = std::max(size.micro_batches, 2 * p - 1);

  std::vector<Action> actions;
  int next[4][2] = {};  // [kind][chunk]: the micro-batch that comes next
  const auto add = [&](Action::Kind kind, int chunk) {
    actions.push_back({kind, chunk, next[static_cast<int>(kind)][chunk]++});
  };
  const auto made = [&](Action::Kind kind, int chunk) {
    return next[static_cast<int>(kind)][chunk];
  };
  const auto add_backward = [&](int chunk) {
    add(kBackwardInput, chunk);
    add(kBackwardWeight, chunk);
  };

  for (int i = 0; i < 2 * (p - r) - 1; ++i) add(kForward, 0);
  for (int i = 0; i < r; ++i) {
    add(kForward, 1);
    add(kForward, 0);
  }
  for (int i = 0; i < p - r; ++i) {
    add(kForward, 1);
    add_backward(1);
  }
  while (made(kForward, 1) < m) {
    if (made(kForward, 0) < m) add(kForward, 0);
    add_backward(0);
    add(kForward, 1);
    add_backward(1);
  }
  for (int i = 0; i < r; ++i) {
    add(kBackwardInput, 0);
    add(kBackwardInput, 1);
  }
  for (int i = 0; i < p - r; ++i) {
    add(kBackwardInput, 0);
    add(kBackwardWeight, 0);
  }
  for (int chunk : {1, 0}) {
    while (made(kBackwardWeight, chunk) < m) add(kBackwardWeight, chunk);
  }
  std::erase_if(actions, [&](const Action& a) { return a.micro_batch >= size.micro_batches; });
  return actions;
}

}  // namespace shoal
