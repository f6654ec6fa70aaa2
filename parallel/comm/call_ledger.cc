#include "parallel/comm/call_ledger.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "core/status.h"

namespace shoal {
namespace {

// Steele, Lea, Flood 2014, "Fast Splittable Pseudorandom Number Generators": their mixing function.
uint64_t Stir(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) + 0x9e3779b97f4a7c15;
  hash = (hash ^ hash >> 30) * 0xbf58476d1ce4e5b9;
  hash = (hash ^ hash >> 27) * 0x94d049bb133111eb;
  return hash ^ hash >> 31;
}

uint64_t HashOf(std::string_view name) {
  uint64_t hash = name.size();
  for (const char byte : name) hash = Stir(hash, static_cast<unsigned char>(byte));
  return hash;
}

// The same for both sides of a message.
Signature Common(Signature call) {
  if (call.kind == CollectiveKind::kSend || call.kind == CollectiveKind::kRecv) {
    call.kind = CollectiveKind::kSend;
    call.root = 0;
  }
  return call;
}

uint64_t HashOf(uint64_t before, const Signature& call) {
  const Signature common = Common(call);
  uint64_t hash =
      Stir(before, static_cast<uint64_t>(common.kind) << 16 |
                       static_cast<uint64_t>(common.op) << 8 | static_cast<uint64_t>(common.dtype));
  hash = Stir(hash, static_cast<uint64_t>(common.root));
  return Stir(hash, static_cast<uint64_t>(common.numel));
}

template <typename T>
std::string BytesOf(const std::vector<T>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

template <typename T>
std::vector<T> FromBytes(const std::string& bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!bytes.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

}  // namespace

// What a rank tells of a group. Plain data.
struct CallLedger::Row {
  uint64_t group;
  uint64_t count;  // Calls that it has made
  uint64_t hash;   // Of those that the last meeting chose
  int32_t size;    // Of the group
  int32_t rank;
  int32_t closed;  // No call will follow
  int32_t last;    // The whole row is: this rank's ledger ends
};

Signature CallLedger::Page::Note(Signature call) {
  ledger_.ThrowIfDisagreed();
  const std::lock_guard lock(mutex_);
  call.sequence = count_++;
  if (!ledger_.stopped_.load(std::memory_order_relaxed))
    noted_.push_back({call, HashOf(noted_.empty() ? agreed_hash_ : noted_.back().hash, call)});
  return call;
}

uint64_t CallLedger::Page::HashAt(uint64_t count) const {
  return count == agreed_ ? agreed_hash_ : noted_[count - agreed_ - 1].hash;
}

CallLedger::CallLedger(std::unique_ptr<Communicator> host, absl::Duration period,
                       std::function<void(const std::string& problem)> on_disagreement)
    : host_(std::move(host)),
      period_(period),
      on_disagreement_(std::move(on_disagreement)),
      thread_([this] { Run(); }) {}

CallLedger::~CallLedger() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

std::shared_ptr<CallLedger::Page> CallLedger::Open(const std::string& name, int size, int rank) {
  const std::shared_ptr<Page> page(new Page(*this, size, rank));
  const std::lock_guard lock(mutex_);
  const bool is_new = pages_.emplace(HashOf(name), page).second;
  SHOAL_CHECK(is_new) << "a second group is called " << name;
  return page;
}

void CallLedger::ThrowIfDisagreed() const {
  if (disagreed()) throw CommError(problem_);
}

void CallLedger::Run() {
  try {
    bool last = false;
    while (!last) {
      bool ending;
      {
        std::unique_lock lock(mutex_);
        changed_.wait_for(lock, absl::ToChronoMicroseconds(period_), [this] { return ending_; });
        ending = ending_;
      }
      last = Meet(ending);
    }
    if (!disagreed()) Meet(/*ending=*/true);  // Compares what the last meeting has chosen
  } catch (const CommError&) {
    // A rank is gone, and with it the job; or it stands still, which its next call tells.
  }
  stopped_.store(true, std::memory_order_relaxed);
}

std::vector<CallLedger::Row> CallLedger::MyRows() {
  std::vector<Row> rows;
  const std::lock_guard lock(mutex_);
  for (const auto& [group, page] : pages_) {
    const bool closed = page.use_count() == 1;  // Only here
    const std::lock_guard page_lock(page->mutex_);
    rows.push_back({.group = group,
                    .count = page->count_,
                    .hash = page->HashAt(page->target_),
                    .size = page->size_,
                    .rank = page->rank_,
                    .closed = closed});
  }
  return rows;
}

bool CallLedger::Meet(bool ending) {
  std::vector<Row> mine = MyRows();
  if (ending) mine.push_back({.size = 0, .last = true});
  std::map<uint64_t, std::vector<std::pair<int, Row>>> groups;  // Of ranks of the job
  const std::vector<std::string> all = AllGatherStrings(*host_, BytesOf(mine));
  bool last = false;
  for (int rank = 0; rank < std::ssize(all); ++rank) {
    for (const Row& row : FromBytes<Row>(all[rank])) {
      last |= row.last != 0;
      if (row.size > 0) groups[row.group].emplace_back(rank, row);
    }
  }
  for (const auto& [group, rows] : groups) {
    if (std::ssize(rows) < rows[0].second.size) continue;  // Not all have opened it
    const auto same = [&](const auto& other) { return other.second.hash == rows[0].second.hash; };
    if (!std::all_of(rows.begin(), rows.end(), same)) {
      Explain(rows);
      return true;
    }
    const std::lock_guard lock(mutex_);
    const auto entry = pages_.find(group);
    if (entry == pages_.end()) continue;  // This rank is not in it
    uint64_t made_by_all = rows[0].second.count;
    bool closed = true;
    for (const auto& [rank, row] : rows) {
      made_by_all = std::min(made_by_all, row.count);
      closed &= row.closed != 0;
    }
    Page& page = *entry->second;
    std::unique_lock page_lock(page.mutex_);
    page.agreed_hash_ = page.HashAt(page.target_);
    page.noted_.erase(page.noted_.begin(),
                      page.noted_.begin() + static_cast<int64_t>(page.target_ - page.agreed_));
    page.agreed_ = page.target_;
    page.target_ = made_by_all;
    page_lock.unlock();
    if (closed && page.agreed_ == made_by_all) pages_.erase(entry);
  }
  return last;
}

void CallLedger::Explain(const std::vector<std::pair<int, Row>>& rows) {
  std::vector<Signature> mine;
  {
    const std::lock_guard lock(mutex_);
    if (const auto entry = pages_.find(rows[0].second.group); entry != pages_.end()) {
      Page& page = *entry->second;
      const std::lock_guard page_lock(page.mutex_);
      for (uint64_t call = page.agreed_; call < page.target_; ++call)
        mine.push_back(page.noted_[call - page.agreed_].call);
    }
  }
  const std::vector<std::string> all = AllGatherStrings(*host_, BytesOf(mine));
  const auto& [first_of_job, first] =
      *std::min_element(rows.begin(), rows.end(),
                        [](const auto& a, const auto& b) { return a.second.rank < b.second.rank; });
  const std::vector<Signature> expected = FromBytes<Signature>(all[first_of_job]);
  size_t place = expected.size();
  for (const auto& [of_job, row] : rows) {
    const std::vector<Signature> calls = FromBytes<Signature>(all[of_job]);
    for (size_t call = 0; call < std::min(place, calls.size()); ++call) {
      if (Common(calls[call]) == Common(expected[call])) continue;
      place = call;
      problem_ = Disagreement(first.rank, expected[call], row.rank, calls[call]);
      if (first.rank != first_of_job || row.rank != of_job)
        absl::StrAppend(&problem_, " (ranks of a group: of the job's, ", first_of_job, " and ",
                        of_job, ")");
    }
  }
  disagreed_.store(true, std::memory_order_release);
  on_disagreement_(problem_);
}

}  // namespace shoal
