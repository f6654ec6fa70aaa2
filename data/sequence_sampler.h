// Which tokens make sequence i, and which sequence comes at which place of an epoch.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/batch.h"
#include "data/token_dataset.h"

namespace shoal {

// A permutation of [0, size) as a pure function of (seed, epoch): a four-round Feistel network over
// the smallest even number of bits that holds `size`, with Philox as the round function; values
// outside walk their cycle until they are inside (Black and Rogaway, "Ciphers with Arbitrary Finite
// Domains", CT-RSA 2002). O(1) expected time and memory.
class ShufflePermutation {
 public:
  ShufflePermutation(uint64_t seed, int64_t epoch, int64_t size);
  // 0 <= index < size.
  int64_t operator()(int64_t index) const;

 private:
  uint64_t Encrypt(uint64_t value) const;

  uint64_t seed_;
  uint64_t stream_;
  uint64_t size_;
  int half_bits_;
};

// One row of a batch, all spans of T entries. See core/batch.h.
struct SequenceRow {
  std::span<int64_t> tokens;
  std::span<int64_t> targets;
  std::span<int64_t> positions;
  std::span<int32_t> documents;  // Empty: not asked for
};

// A dataset as numbered sequences. Thread-safe.
class SequenceSource {
 public:
  virtual ~SequenceSource() = default;
  virtual int64_t num_sequences() const = 0;
  // Fills `row` and returns the number of its targets.
  virtual absl::StatusOr<int64_t> Read(int64_t index, const SequenceRow& row) const = 0;
};

struct SequenceOptions {
  int64_t seq_length = 0;
  // The documents' ids are asked for; positions restart at each document, and the last token of a
  // document has no target. Of packed sequences.
  bool document_mask = false;
  // Fills the rest of a row that its document does not fill. Of unpacked sequences.
  int64_t padding_id = 0;
  // The share of sequences, from `begin` to `end`, that this source holds: [0, 1] is all of them.
  double begin = 0;
  double end = 1;
};

// The stream of all tokens, cut every seq_length tokens: sequence i has the inputs [i T, (i + 1) T)
// and the targets [i T + 1, (i + 1) T + 1), so neighbours share one token and no target is lost.
// What does not fill a sequence at the end is dropped.
std::unique_ptr<SequenceSource> MakePackedSequences(std::shared_ptr<const TokenDataset> dataset,
                                                    const SequenceOptions& options);

// A document is a row of its own, cut every seq_length tokens and padded. Targets are the next
// tokens of the document; its last token and the padding have none. Rows without any target are
// left out.
std::unique_ptr<SequenceSource> MakeDocumentSequences(std::shared_ptr<const TokenDataset> dataset,
                                                      const SequenceOptions& options);

}  // namespace shoal
