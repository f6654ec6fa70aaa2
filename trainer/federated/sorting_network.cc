#include "trainer/federated/sorting_network.h"

#include <algorithm>

namespace shoal {

std::vector<CompareExchange> SortingNetwork(int num_rows, int first, int last) {
  // Knuth, The Art of Computer Programming, volume 3, algorithm 5.2.2M, for any number of rows.
  std::vector<CompareExchange> all;
  int top = 1;
  while (top < num_rows) top *= 2;
  for (int p = top / 2; p > 0; p /= 2) {
    int q = top / 2, r = 0, d = p;
    while (true) {
      for (int i = 0; i < num_rows - d; ++i) {
        if ((i & p) == r) all.push_back({i, i + d});
      }
      if (q == p) break;
      d = q - p;
      q /= 2;
      r = p;
    }
  }
  // Backwards: a step matters if one of its rows does, and then both of what it reads.
  std::vector<bool> matters(num_rows, false);
  for (int row = first; row < last; ++row) matters[row] = true;
  std::vector<CompareExchange> needed;
  for (auto step = all.rbegin(); step != all.rend(); ++step) {
    if (!matters[step->low] && !matters[step->high]) continue;
    matters[step->low] = matters[step->high] = true;
    needed.push_back(*step);
  }
  std::reverse(needed.begin(), needed.end());
  return needed;
}

}  // namespace shoal
