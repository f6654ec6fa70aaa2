// Which examples belong to which client. Every function returns one list of example indices a
// client: disjoint, together all of [0, num_examples), each in increasing order. They are functions
// of their arguments alone: any rank computes the same.
//
// Errors (InvalidArgument): no clients, fewer examples than they need, an option out of its range.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"

#include "core/status.h"

namespace shoal {

// [client] -> indices of examples
using Partition = std::vector<std::vector<int64_t>>;

// Shuffled and dealt out: sizes differ by at most one (McMahan et al. 2017, section 3, "IID").
absl::StatusOr<Partition> PartitionIid(int64_t num_examples, int num_clients, uint64_t seed);

struct DirichletOptions {
  double alpha = 0.5;        // Small: each class on few clients. Large: IID
  int64_t min_examples = 1;  // Of every client
  int max_attempts = 100;    // Draws until every client has min_examples
};

// Each class is cut among the clients by its own draw of Dirichlet(alpha, ..., alpha) (Hsu et al.
// 2019; Yurochkin et al. 2019). labels: (num_examples). Draws are keyed by (seed,
// attempt, class). FailedPrecondition: no attempt gave every client min_examples; the message says
// the best smallest client seen.
absl::StatusOr<Partition> PartitionDirichlet(absl::Span<const int64_t> labels, int num_clients,
                                             uint64_t seed, const DirichletOptions& options);

// Sorted by label, cut into num_clients * shards_per_client runs of nearly equal size, dealt out at
// random (McMahan et al. 2017, section 3, "pathological non-IID": two shards a client).
absl::StatusOr<Partition> PartitionShards(absl::Span<const int64_t> labels, int num_clients,
                                          int shards_per_client, uint64_t seed);

struct NaturalPartition {
  std::vector<std::string> names;  // [client], in byte order
  Partition clients;
};

// One client a distinct key: a file, a user, a device. keys: (num_examples).
NaturalPartition PartitionByKey(absl::Span<const std::string> keys);

}  // namespace shoal
