#include "trainer/federated/partition.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>
#include <numeric>
#include <utility>

#include "core/random.h"

namespace shoal {
namespace {

Philox Stream(uint64_t seed, absl::string_view what, int64_t attempt = 0, int64_t part = 0) {
  return Philox(seed,
                StreamId(absl::StrCat("federated.partition.", what, ".", attempt, ".", part)));
}

// Fisher and Yates, element k of the stream deciding step k.
void Shuffle(std::vector<int64_t>& values, const Philox& random) {
  for (size_t left = values.size(); left > 1; --left) {
    const unsigned __int128 product = static_cast<unsigned __int128>(random.Bits(left)) * left;
    std::swap(values[left - 1], values[static_cast<size_t>(product >> 64)]);
  }
}

std::vector<int64_t> Range(int64_t size) {
  std::vector<int64_t> all(static_cast<size_t>(size));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

// Begin of part `part` of `parts` nearly equal ones.
int64_t Cut(int64_t size, int64_t part, int64_t parts) {
  return static_cast<int64_t>(static_cast<__int128>(size) * part / parts);
}

absl::Status CheckSizes(int64_t num_examples, int num_clients, int64_t most_needed) {
  if (num_clients < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("a partition among ", num_clients, " clients: there must be at least one"));
  }
  if (num_examples < most_needed) {
    return absl::InvalidArgumentError(absl::StrCat(num_examples, " examples cannot give each of ",
                                                   num_clients, " clients ",
                                                   most_needed / num_clients));
  }
  return absl::OkStatus();
}

// Indices of each label, labels in increasing order.
std::vector<std::vector<int64_t>> ByLabel(absl::Span<const int64_t> labels) {
  std::map<int64_t, std::vector<int64_t>> classes;
  for (size_t k = 0; k < labels.size(); ++k) classes[labels[k]].push_back(static_cast<int64_t>(k));
  std::vector<std::vector<int64_t>> lists;
  for (auto& [label, indices] : classes) lists.push_back(std::move(indices));
  return lists;
}

// The logarithm of a Gamma(alpha, 1) number: Marsaglia and Tsang 2000, for alpha below 1 through
// Gamma(alpha + 1) U^(1 / alpha). In logarithms, since alpha = 0.01 gives numbers below any double.
// Elements [first, first + 2^20) of the stream belong to it.
double LogGammaSample(double alpha, const Philox& random, uint64_t first) {
  const auto open_uniform = [&](uint64_t index) { return 1 - random.Uniform(first + index); };
  if (alpha < 1) {
    return LogGammaSample(alpha + 1, random, first + 1) + std::log(open_uniform(0)) / alpha;
  }
  const double d = alpha - 1.0 / 3, c = 1 / std::sqrt(9 * d);
  for (uint64_t index = 0;; index += 3) {  // Accepts 95 of 100
    const double x = std::sqrt(-2 * std::log(open_uniform(index))) *
                     std::cos(2 * std::numbers::pi * random.Uniform(first + index + 1));
    const double root = 1 + c * x;
    if (root <= 0) continue;
    const double v = root * root * root;
    if (std::log(open_uniform(index + 2)) < 0.5 * x * x + d - d * v + d * std::log(v)) {
      return std::log(d) + std::log(v);
    }
  }
}

// Ends of the clients' runs in a class of `size`: [client], the last is `size`.
std::vector<int64_t> CutByShares(const std::vector<double>& log_shares, int64_t size) {
  const double largest = *std::max_element(log_shares.begin(), log_shares.end());
  double total = 0;
  for (double share : log_shares) total += std::exp(share - largest);
  std::vector<int64_t> ends;
  double sum = 0;
  for (double share : log_shares) {
    sum += std::exp(share - largest);  // The same additions: the last sum is total
    ends.push_back(static_cast<int64_t>(sum / total * static_cast<double>(size)));
  }
  return ends;
}

}  // namespace

absl::StatusOr<Partition> PartitionIid(int64_t num_examples, int num_clients, uint64_t seed) {
  SHOAL_RETURN_IF_ERROR(CheckSizes(num_examples, num_clients, num_clients));
  std::vector<int64_t> order = Range(num_examples);
  Shuffle(order, Stream(seed, "iid"));
  Partition clients;
  for (int client = 0; client < num_clients; ++client) {
    clients.emplace_back(order.begin() + Cut(num_examples, client, num_clients),
                         order.begin() + Cut(num_examples, client + 1, num_clients));
    std::sort(clients.back().begin(), clients.back().end());
  }
  return clients;
}

absl::StatusOr<Partition> PartitionDirichlet(absl::Span<const int64_t> labels, int num_clients,
                                             uint64_t seed, const DirichletOptions& options) {
  if (!(options.alpha > 0 && std::isfinite(options.alpha)) || options.min_examples < 0 ||
      options.max_attempts < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a Dirichlet partition with alpha ", options.alpha, ", min_examples ", options.min_examples,
        ", max_attempts ", options.max_attempts,
        ": alpha must be positive, min_examples not negative, max_attempts at least 1"));
  }
  const int64_t num_examples = static_cast<int64_t>(labels.size());
  SHOAL_RETURN_IF_ERROR(CheckSizes(num_examples, num_clients, options.min_examples * num_clients));
  std::vector<std::vector<int64_t>> classes = ByLabel(labels);
  int64_t best_smallest = -1;
  for (int attempt = 0; attempt < options.max_attempts; ++attempt) {
    std::vector<int64_t> sizes(num_clients, 0);
    std::vector<std::vector<int64_t>> ends;  // [class][client]
    for (size_t label = 0; label < classes.size(); ++label) {
      const Philox random = Stream(seed, "dirichlet", attempt, static_cast<int64_t>(label));
      std::vector<double> log_shares(num_clients);
      for (int client = 0; client < num_clients; ++client) {
        log_shares[client] =
            LogGammaSample(options.alpha, random, static_cast<uint64_t>(client) << 20);
      }
      const int64_t size = static_cast<int64_t>(classes[label].size());
      ends.push_back(CutByShares(log_shares, size));
      for (int client = 0; client < num_clients; ++client) {
        sizes[client] += ends.back()[client] - (client > 0 ? ends.back()[client - 1] : 0);
      }
    }
    const int64_t smallest = *std::min_element(sizes.begin(), sizes.end());
    best_smallest = std::max(best_smallest, smallest);
    if (smallest < options.min_examples) continue;
    Partition clients(num_clients);
    for (size_t label = 0; label < classes.size(); ++label) {
      Shuffle(classes[label], Stream(seed, "order", attempt, static_cast<int64_t>(label)));
      int64_t begin = 0;
      for (int client = 0; client < num_clients; ++client) {
        clients[client].insert(clients[client].end(), classes[label].begin() + begin,
                               classes[label].begin() + ends[label][client]);
        begin = ends[label][client];
      }
    }
    for (auto& client : clients) std::sort(client.begin(), client.end());
    return clients;
  }
  return absl::FailedPreconditionError(
      absl::StrCat("none of ", options.max_attempts, " draws of Dirichlet(", options.alpha,
                   ") gave each of ", num_clients, " clients ", options.min_examples, " of ",
                   num_examples, " examples; the best gave its smallest client ", best_smallest,
                   ": raise alpha, lower min_examples or take fewer clients"));
}

absl::StatusOr<Partition> PartitionShards(absl::Span<const int64_t> labels, int num_clients,
                                          int shards_per_client, uint64_t seed) {
  if (shards_per_client < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(shards_per_client, " shards a client: there must be at least one"));
  }
  const int64_t num_examples = static_cast<int64_t>(labels.size());
  const int64_t num_shards = static_cast<int64_t>(num_clients) * shards_per_client;
  SHOAL_RETURN_IF_ERROR(CheckSizes(num_examples, num_clients, num_shards));
  std::vector<int64_t> sorted = Range(num_examples);
  std::stable_sort(sorted.begin(), sorted.end(),
                   [&](int64_t a, int64_t b) { return labels[a] < labels[b]; });
  std::vector<int64_t> shards = Range(num_shards);
  Shuffle(shards, Stream(seed, "shards"));
  Partition clients(num_clients);
  for (int64_t k = 0; k < num_shards; ++k) {
    std::vector<int64_t>& client = clients[k / shards_per_client];
    client.insert(client.end(), sorted.begin() + Cut(num_examples, shards[k], num_shards),
                  sorted.begin() + Cut(num_examples, shards[k] + 1, num_shards));
  }
  for (auto& client : clients) std::sort(client.begin(), client.end());
  return clients;
}

NaturalPartition PartitionByKey(absl::Span<const std::string> keys) {
  std::map<std::string, std::vector<int64_t>> by_key;
  for (size_t k = 0; k < keys.size(); ++k) by_key[keys[k]].push_back(static_cast<int64_t>(k));
  NaturalPartition partition;
  for (auto& [name, indices] : by_key) {
    partition.names.push_back(name);
    partition.clients.push_back(std::move(indices));
  }
  return partition;
}

}  // namespace shoal
