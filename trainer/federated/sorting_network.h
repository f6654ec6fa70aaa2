// Sorting by a fixed list of compare-exchanges: the same steps for every column of numbers, so a
// compiler can do many columns at a time.
#pragma once

#include <vector>

namespace shoal {

// Puts the smaller of rows `low` and `high` into `low`.
struct CompareExchange {
  int low, high;
};

// Batcher's odd-even merge sort (Batcher 1968) for any number of rows, O(n log^2 n) steps, without
// those that change only rows outside [first, last): these come out sorted and in their places, the
// others in any order.
std::vector<CompareExchange> SortingNetwork(int num_rows, int first, int last);

}  // namespace shoal
