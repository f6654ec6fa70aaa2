// One rank's list of each kind of schedule: what MakeSchedule() is made of.
#pragma once

#include <vector>

#include "parallel/pipeline/schedule.h"

namespace shoal {

struct ListSize {
  int ranks;          // p
  int rank;           // r
  int micro_batches;  // m
};

std::vector<Action> GpipeList(const ListSize& size);

// p - r - 1 forwards, then a forward and a backward in turn. Activations of p - r micro-batches.
std::vector<Action> OneFOneBList(const ListSize& size);

// Forwards go by groups of micro-batches, each through all chunks before the next group; backwards
// likewise, from the last chunk. Narayanan et al. take groups of p and want m / p whole; here there
// are m / p groups (at least one) of as equal a size as can be, p or more if m is; this keeps their
// bubble, (p - 1) / (chunks m + p - 1), at any m >= p. With g the largest group, 2 (p - r - 1) +
// (chunks - 1) g forwards, then a forward and a backward in turn: g > p costs chunks - 1 more
// activations each. With 1 chunk the list is 1F1B's, which needs less memory.
std::vector<Action> InterleavedList(const ListSize& size, int chunks);

// 1F1B with the backward in halves, the weight half r micro-batches late: rank r has p - r
// micro-batches between forward and input half and r between input and weight half. Bubble of
// (p - 1)(F + I - W) in place of (p - 1)(F + I + W).
std::vector<Action> ZbH1List(const ListSize& size);

// Rank r starts with 2 (p - r) - 1 forwards of chunk 0, then forwards of both chunks in turn until
// the first micro-batch has come down the V and up again; from there on forward, input half, weight
// half of either chunk in turn. At the end weight halves fill the gaps between input halves. Never
// more than 2 p activations of a chunk.
std::vector<Action> ZbVList(const ListSize& size);

}  // namespace shoal
