// Keys and values of the tokens that a model has read, of any number of sequences, in blocks of
// equally many places (Kwon et al. 2023, "Efficient Memory Management for Large Language Model
// Serving with PagedAttention"). A sequence holds a table of blocks; one that ends gives them back.
// Sequences that begin alike share blocks: Fork copies the table, and a shared block is copied
// before it is written.
//
// A pass over new tokens, of one or many sequences:
//   cache.BeginPass({{.sequence = a, .num_tokens = 5}, {.sequence = b, .num_tokens = 1}});
//   every layer calls Attend, once, with the six rows of the two, end to end;
//   cache.EndPass();            // ForwardAll (forward.h) does it
// A Batch (B, T) is B segments of T tokens, or (1, R) one after the other.
//
// Blocks lie where the model computes. On a device that is not the host, BeginPass sends it the
// pass's tables of blocks, without waiting for it; no layer sends anything.
//
// A block takes 2 * num_layers * num_key_value_heads * block_places * head_dim elements, a sequence
// of n places ceil(n / block_places) blocks; memory is asked for a few blocks at a time and kept
// until the cache is destroyed.
//
// Legend: B sequences, T new tokens, N query heads, K key-value heads, H head size.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/parameter.h"
#include "kernels/paged_attention.h"

namespace shoal {

class KeyValueCache {
 public:
  struct Options {
    int64_t num_layers = 0;
    int64_t num_key_value_heads = 0;  // Of this rank
    int64_t head_dim = 0;
    at::ScalarType dtype = at::kFloat;
    int64_t block_places = 16;
    at::Device device = at::kCPU;
  };
  explicit KeyValueCache(const Options& options);

  using Sequence = int;
  Sequence Add();                // Empty
  Sequence Fork(Sequence from);  // As long as `from`, all of its blocks shared
  void Remove(Sequence sequence);
  int64_t length(Sequence sequence) const { return table(sequence).length; }

  struct Segment {
    Sequence sequence;
    int64_t num_tokens;
  };
  // Makes room for the segments' new tokens; each sequence at most once. Throws std::bad_alloc.
  void BeginPass(std::span<const Segment> segments);
  // Writes k, v (B, T, K, H), the segments' tokens end to end, behind each sequence's places and
  // returns attention of q (B, T, N, H) over them, in q's shape. Once a layer and pass.
  Tensor Attend(int64_t layer, const Tensor& q_BTNH, const Tensor& k_BTKH, const Tensor& v_BTKH,
                double scale);
  // After the last layer: every sequence of the pass is its new tokens longer.
  void EndPass();

  int64_t block_bytes() const { return block_bytes_; }
  int64_t blocks_held() const { return static_cast<int64_t>(users_.size()); }
  int64_t blocks_in_use() const { return blocks_held() - static_cast<int64_t>(free_.size()); }
  const Options& options() const { return options_; }

 private:
  using Block = int;
  struct Table {
    std::vector<Block> blocks;
    std::vector<const void*> addresses;  // Of the blocks
    int64_t length = 0;
    bool in_use = false;
  };
  const Table& table(Sequence sequence) const;
  Block Take();
  void GiveBack(Block block);
  Tensor BytesOf(Block block) const;
  void MakeRoom(Table& table, int64_t length);

  Options options_;
  int64_t block_bytes_;
  int64_t blocks_at_once_;
  std::vector<Tensor> memory_;    // (blocks_at_once * block_bytes) uint8 each
  std::vector<void*> addresses_;  // One a block, as users_
  std::vector<int> users_;        // Tables that hold the block
  std::vector<Block> free_;
  std::vector<Table> tables_;  // By sequence
  // Of the pass
  std::vector<Segment> pass_;
  std::vector<PagedSegment> segments_;
  Tensor paged_table_;  // See PagedTable
};

}  // namespace shoal
