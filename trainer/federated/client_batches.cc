#include "trainer/federated/client_batches.h"

#include <algorithm>

#include <ATen/ops/empty.h>

#include "core/random.h"
#include "data/sequence_sampler.h"

namespace shoal {
namespace {

int64_t StepsOfEpoch(int64_t examples, int64_t batch_size) {
  return (examples + batch_size - 1) / batch_size;
}

// Of places [first, first + count) in a visit's order: no other visit, of this client or another,
// has the same.
at::Tensor SequenceNumbers(uint64_t order_seed, int64_t first, int64_t count) {
  at::Tensor numbers = at::empty({count}, at::kLong);
  for (int64_t i = 0; i < count; ++i) {
    numbers.mutable_data_ptr<int64_t>()[i] =
        static_cast<int64_t>(SubStream(order_seed, static_cast<uint64_t>(first + i)));
  }
  return numbers;
}

}  // namespace

int64_t LocalSteps(const FederatedSection& federated, int64_t examples, int64_t batch_size) {
  if (examples == 0) return 0;
  if (federated.has_local_steps()) return federated.local_steps();
  const int64_t epochs = federated.has_local_epochs() ? federated.local_epochs() : 1;
  return epochs * StepsOfEpoch(examples, batch_size);
}

uint64_t ClientBatches::OrderSeed(uint64_t seed, const ClientTask& task) {
  const uint64_t of_client =
      Philox(seed, StreamId("federated.order")).Bits(static_cast<uint64_t>(task.client));
  return Philox(of_client).Bits(static_cast<uint64_t>(task.visit));
}

std::vector<int64_t> ClientBatches::ExamplesOf(const Client& client, int64_t step) const {
  const auto count = static_cast<int64_t>(client.examples.size());
  const int64_t steps = StepsOfEpoch(count, deal_.batch.global), epoch = step / steps;
  const int64_t begin = step % steps * deal_.batch.global,
                end = std::min(count, begin + deal_.batch.global);
  const ShufflePermutation order(client.order_seed, epoch, count);
  std::vector<int64_t> taken;
  for (int64_t i = begin; i < end; ++i)
    taken.push_back(client.examples[deal_.shuffle ? order(i) : i]);
  return taken;
}

absl::StatusOr<std::vector<Batch>> ClientBatches::MicroBatches(int64_t step) {
  std::vector<std::vector<int64_t>> taken;
  size_t most = 1;
  for (const Client& client : clients_) {
    taken.push_back(ExamplesOf(client, step));
    most = std::max(most, taken.back().size());
  }
  std::vector<Batch> batches;
  if (clients_.size() > 1) {
    std::vector<int64_t> rows;
    for (std::vector<int64_t>& of_client : taken) {
      of_client.resize(most, -1);
      rows.insert(rows.end(), of_client.begin(), of_client.end());
    }
    SHOAL_ASSIGN_OR_RETURN(Batch batch, examples_.Read(rows));
    batches.push_back(std::move(batch));
    return batches;
  }
  // As data/data_loader.h deals out: micro-batch m of rank r has rows (m * ranks + r) * per_device.
  for (int64_t m = 0; m < deal_.batch.accumulation; ++m) {
    const int64_t first = (m * deal_.ranks + deal_.rank) * deal_.batch.per_device;
    std::vector<int64_t> rows;
    for (int64_t i = first; i < first + deal_.batch.per_device; ++i) {
      const bool there = i < static_cast<int64_t>(taken[0].size());
      // A short batch is short where nobody waits for a full one.
      if (there || rows.empty() || deal_.batch.accumulation > 1 || deal_.ranks > 1)
        rows.push_back(there ? taken[0][i] : -1);
    }
    SHOAL_ASSIGN_OR_RETURN(Batch batch, examples_.Read(rows));
    batch.sequences_B = SequenceNumbers(clients_[0].order_seed, step * deal_.batch.global + first,
                                        static_cast<int64_t>(rows.size()));
    batches.push_back(std::move(batch));
  }
  return batches;
}

}  // namespace shoal
