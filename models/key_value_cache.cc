#include "models/key_value_cache.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "core/dtype.h"
#include "core/status.h"

namespace shoal {
namespace {

constexpr int64_t kBytesAtOnce = int64_t{8} << 20;

}  // namespace

KeyValueCache::KeyValueCache(const Options& options)
    : options_(options),
      block_bytes_(2 * options.num_layers * options.num_key_value_heads * options.block_places *
                   options.head_dim * ElementBytes(options.dtype)) {
  SHOAL_CHECK(block_bytes_ > 0) << "KeyValueCache: a block of no bytes";
  blocks_at_once_ = std::max<int64_t>(1, kBytesAtOnce / block_bytes_);
}

const KeyValueCache::Table& KeyValueCache::table(Sequence sequence) const {
  SHOAL_CHECK(0 <= sequence && sequence < static_cast<int>(tables_.size()) &&
              tables_[sequence].in_use)
      << "KeyValueCache: no sequence " << sequence;
  return tables_[sequence];
}

KeyValueCache::Sequence KeyValueCache::Add() {
  const auto unused =
      std::find_if(tables_.begin(), tables_.end(), [](const Table& t) { return !t.in_use; });
  const Sequence sequence = static_cast<Sequence>(unused - tables_.begin());
  if (unused == tables_.end()) tables_.emplace_back();
  tables_[sequence].in_use = true;
  return sequence;
}

KeyValueCache::Sequence KeyValueCache::Fork(Sequence from) {
  const Sequence sequence = Add();
  tables_[sequence] = table(from);
  for (Block block : tables_[sequence].blocks) ++users_[block];
  return sequence;
}

void KeyValueCache::Remove(Sequence sequence) {
  for (Block block : table(sequence).blocks) GiveBack(block);
  tables_[sequence] = Table();
}

KeyValueCache::Block KeyValueCache::Take() {
  if (free_.empty()) {
    const int64_t count = blocks_at_once_;
    const Tensor memory =
        at::empty({count * block_bytes_}, at::TensorOptions(at::kByte).device(options_.device));
    char* begin = static_cast<char*>(memory.mutable_data_ptr());
    memory_.push_back(memory);
    for (int64_t i = count - 1; i >= 0; --i) free_.push_back(static_cast<Block>(blocks_held() + i));
    for (int64_t i = 0; i < count; ++i) {
      addresses_.push_back(begin + i * block_bytes_);
      users_.push_back(0);
    }
  }
  const Block block = free_.back();
  free_.pop_back();
  users_[block] = 1;
  return block;
}

Tensor KeyValueCache::BytesOf(Block block) const {
  return memory_[block / blocks_at_once_].narrow(0, block % blocks_at_once_ * block_bytes_,
                                                 block_bytes_);
}

void KeyValueCache::GiveBack(Block block) {
  if (--users_[block] == 0) free_.push_back(block);
}

void KeyValueCache::MakeRoom(Table& table, int64_t length) {
  const int64_t places = options_.block_places;
  if (table.length % places != 0) {  // The last block will be written
    const size_t last = table.length / places;
    if (const Block shared = table.blocks[last]; users_[shared] > 1) {
      const Block copy = Take();
      BytesOf(copy).copy_(BytesOf(shared));
      GiveBack(shared);
      table.blocks[last] = copy;
      table.addresses[last] = addresses_[copy];
    }
  }
  while (static_cast<int64_t>(table.blocks.size()) * places < length) {
    const Block block = Take();
    table.blocks.push_back(block);
    table.addresses.push_back(addresses_[block]);
  }
}

void KeyValueCache::BeginPass(std::span<const Segment> segments) {
  pass_.assign(segments.begin(), segments.end());
  segments_.clear();
  int64_t row = 0;
  for (const Segment& segment : pass_) {
    const int64_t past = length(segment.sequence);
    Table& table = tables_[segment.sequence];
    MakeRoom(table, past + segment.num_tokens);
    segments_.push_back({.first_row = row,
                         .num_tokens = segment.num_tokens,
                         .past = past,
                         .blocks = table.addresses.data()});
    row += segment.num_tokens;
  }
  paged_table_ = PagedTable(segments_, options_.block_places,
                            at::TensorOptions(options_.dtype).device(options_.device));
}

Tensor KeyValueCache::Attend(int64_t layer, const Tensor& q_BTNH, const Tensor& k_BTKH,
                             const Tensor& v_BTKH, double scale) {
  SHOAL_CHECK(!segments_.empty()) << "KeyValueCache: Attend before BeginPass";
  SHOAL_CHECK(k_BTKH.size(2) == options_.num_key_value_heads &&
              k_BTKH.size(3) == options_.head_dim && k_BTKH.scalar_type() == options_.dtype &&
              0 <= layer && layer < options_.num_layers)
      << "KeyValueCache: layer " << layer << ", keys " << k_BTKH.sizes();
  const int64_t half = options_.num_key_value_heads * options_.block_places * options_.head_dim;
  const PagedLayout layout{.block_places = options_.block_places,
                           .key_offset = 2 * layer * half,
                           .value_offset = (2 * layer + 1) * half};
  return PagedAttention(q_BTNH.flatten(0, 1), k_BTKH.flatten(0, 1), v_BTKH.flatten(0, 1), segments_,
                        layout, scale, paged_table_)
      .view(q_BTNH.sizes());
}

void KeyValueCache::EndPass() {
  for (const Segment& segment : pass_) tables_[segment.sequence].length += segment.num_tokens;
  pass_.clear();
  segments_.clear();
  paged_table_ = Tensor();
}

}  // namespace shoal
