#include "trainer/rlhf/rollout.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "core/random.h"
#include "core/status.h"
#include "data/sequence_sampler.h"

namespace shoal {

using at::Tensor;

namespace {

// Brings tensors of one dtype to host memory, for one wait in all.
void InHostMemory(std::vector<Tensor>& tensors) {
  if (tensors.empty() || tensors[0].is_cpu()) return;
  std::vector<Tensor> flat;
  for (const Tensor& tensor : tensors) flat.push_back(tensor.flatten());
  const Tensor all = at::cat(flat).cpu();
  int64_t begin = 0;
  for (Tensor& tensor : tensors) {
    const int64_t numel = tensor.numel();
    tensor = all.narrow(0, begin, numel).view(tensor.sizes());
    begin += numel;
  }
}

}  // namespace

Rollout CollectRollout(int64_t number, std::span<const int64_t> prompts,
                       std::span<const GenerationRequest> requests,
                       std::vector<Generation> generations) {
  Rollout rollout{.number = number};
  const int64_t N = static_cast<int64_t>(requests.size());
  int64_t A = 1;
  for (const Generation& generation : generations)
    A = std::max<int64_t>(A, generation.tokens.size());
  rollout.mask_NA = at::zeros({N, A}, at::kBool);
  Tensor logprobs_NA = at::zeros({N, A}, at::kDouble);
  for (int64_t n = 0; n < N; ++n) {
    const Generation& answer = generations[n];
    Rollout::Row row{.prompt = prompts[n],
                     .tokens = requests[n].prompt,
                     .prompt_length = static_cast<int64_t>(requests[n].prompt.size()),
                     .finish_reason = answer.finish_reason};
    row.tokens.insert(row.tokens.end(), answer.tokens.begin(), answer.tokens.end());
    rollout.mask_NA[n].narrow(0, 0, row.answer_length()).fill_(true);
    std::copy(answer.logprobs.begin(), answer.logprobs.end(),
              logprobs_NA.mutable_data_ptr<double>() + n * A);
    rollout.rows.push_back(std::move(row));
  }
  rollout.of_tokens[kRolloutLogprobs] = logprobs_NA;
  return rollout;
}

std::vector<int64_t> MicroBatchRows(const Rollout& rollout, const RolloutLayout& layout,
                                    int64_t epoch, int64_t step, int64_t micro_batch) {
  const ShufflePermutation order(layout.seed ^ StreamId(absl::StrCat("rollout ", rollout.number)),
                                 epoch, rollout.size());
  const int64_t first =
      step * layout.global() + (micro_batch * layout.num_ranks + layout.rank) * layout.rows;
  std::vector<int64_t> rows;
  for (int64_t row = first; row < first + layout.rows; ++row) rows.push_back(order(row));
  return rows;
}

Batch MakeRolloutBatch(const Rollout& rollout, std::span<const int64_t> rows, int64_t multiple,
                       std::span<const std::string> names) {
  const int64_t B = static_cast<int64_t>(rows.size());
  int64_t T = 1;
  // The last token is predicted, not read.
  for (int64_t n : rows) T = std::max<int64_t>(T, rollout.rows[n].tokens.size() - 1);
  T = (T + multiple - 1) / multiple * multiple;
  Batch batch{.tokens_BT = at::zeros({B, T}, at::kLong),
              .targets_BT = at::full({B, T}, Batch::kIgnoreIndex, at::kLong),
              .positions_BT = at::arange(T, at::kLong).expand({B, T}).contiguous(),
              .documents_BT = {},
              .lengths_B = at::empty({B}, at::kLong)};
  std::vector<std::string> carried(names.begin(), names.end());
  carried.insert(carried.end(), rollout.inputs.begin(), rollout.inputs.end());
  for (const std::string& name : carried) {
    std::vector<int64_t> sizes = rollout.of_tokens.at(name).sizes().vec();
    sizes[0] = B, sizes[1] = T;
    batch.named[name] = at::zeros(sizes, at::kDouble);
  }
  if (rollout.episodes_NA.defined()) batch.documents_BT = at::zeros({B, T}, at::kInt);
  for (int64_t b = 0; b < B; ++b) {
    const Rollout::Row& row = rollout.rows[rows[b]];
    const int64_t length = row.answer_length(), first = row.prompt_length - 1;
    int64_t* tokens = batch.tokens_BT.mutable_data_ptr<int64_t>() + b * T;
    std::copy(row.tokens.begin(), row.tokens.end() - 1, tokens);
    batch.lengths_B.mutable_data_ptr<int64_t>()[b] = static_cast<int64_t>(row.tokens.size()) - 1;
    std::copy(row.tokens.begin() + row.prompt_length, row.tokens.end(),
              batch.targets_BT.mutable_data_ptr<int64_t>() + b * T + first);
    for (const std::string& name : carried) {
      batch.named[name][b]
          .narrow(0, first, length)
          .copy_(rollout.of_tokens.at(name)[rows[b]].narrow(0, 0, length));
    }
    if (rollout.episodes_NA.defined()) {
      // Padding, if there is any, belongs to the last episode.
      const Tensor episodes_A = rollout.episodes_NA[rows[b]];
      batch.documents_BT[b].fill_(episodes_A[length - 1]);
      batch.documents_BT[b].narrow(0, first, length).copy_(episodes_A.narrow(0, 0, length));
    }
    batch.num_targets += length;
  }
  if (rollout.episodes_NA.defined()) SetPositions(batch);
  return batch;
}

void SetPositions(Batch& batch) {
  const int64_t B = batch.documents_BT.size(0), T = batch.documents_BT.size(1);
  const int32_t* documents = batch.documents_BT.const_data_ptr<int32_t>();
  int64_t* positions = batch.positions_BT.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < B * T; ++i)
    positions[i] = i % T == 0 || documents[i] != documents[i - 1] ? 0 : positions[i - 1] + 1;
}

Tensor HeadOfRollout(BlockRunner& runner, DeviceMesh& mesh, const Rollout& rollout,
                     const RolloutLayout& layout, const BlockRunner::HeadOptions& options) {
  std::vector<std::vector<int64_t>> rows;  // [micro-batch]
  std::vector<Tensor> heads_BT;
  for (int64_t step = 0; step < rollout.size() / layout.global(); ++step) {
    for (int64_t m = 0; m < layout.micro_batches; ++m) {
      rows.push_back(MicroBatchRows(rollout, layout, /*epoch=*/0, step, m));
      const Batch batch = MakeRolloutBatch(rollout, rows.back(), layout.multiple, {});
      const Activations out = runner.Head(batch, options);
      heads_BT.push_back(options.mode == HeadMode::kScores ? out.scores_BT : out.logprobs_BT);
    }
  }
  Tensor head_NA = at::zeros(rollout.mask_NA.sizes(), at::kDouble);
  if (mesh.reports_loss()) {
    InHostMemory(heads_BT);
    for (size_t m = 0; m < rows.size(); ++m) {
      for (size_t b = 0; b < rows[m].size(); ++b) {
        const Rollout::Row& row = rollout.rows[rows[m][b]];
        head_NA[rows[m][b]]
            .narrow(0, 0, row.answer_length())
            .copy_(heads_BT[m][static_cast<int64_t>(b)].narrow(0, row.prompt_length - 1,
                                                               row.answer_length()));
      }
    }
  }
  mesh.control().AllReduce(head_NA);
  return head_NA;
}

}  // namespace shoal
