// Compares the calls of ranks that do not meet on their hosts to make them.
//
// [Note: ledger] A rank writes down each call before it makes it and goes on; nobody waits. Every
// `period` threads of the ledgers' own, which no call holds up, meet on a communicator that is
// theirs: they tell of each group how many calls its rank has made, and compare a hash of those
// that, by the last meeting, all of its ranks had made. Where hashes differ the calls behind them
// are brought together, and every rank finds the first that differs. So a disagreement is known on
// all ranks two periods after the last rank has made its call, whatever the ranks wait for by then.
// What is sent does not grow with the number of calls: 40 bytes a group and rank.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/time/time.h"
#include "parallel/comm/communicator.h"
#include "parallel/comm/signature.h"

namespace shoal {

class CallLedger {
 public:
  // What a rank calls in one group. Used by one thread at a time.
  class Page {
   public:
    // Before the call is made; returns it with its sequence number. Throws CommError once ranks are
    // known to disagree, in whichever group.
    Signature Note(Signature call);

   private:
    friend class CallLedger;
    struct Noted {
      Signature call;
      uint64_t hash;  // Of this call and all before
    };
    Page(const CallLedger& ledger, int size, int rank)
        : ledger_(ledger), size_(size), rank_(rank) {}
    uint64_t HashAt(uint64_t count) const;

    const CallLedger& ledger_;
    const int size_, rank_;
    std::mutex mutex_;  // For all below
    uint64_t count_ = 0;
    uint64_t agreed_ = 0;  // Calls that all ranks have made alike, not kept
    uint64_t agreed_hash_ = 0;
    uint64_t target_ = 0;  // Calls that all ranks have made, to be compared next
    std::deque<Noted> noted_;
  };

  // `host`: of all ranks, for this use alone. `on_disagreement` is told which two calls differ, on
  // every rank, on the ledger's thread, once. Collective.
  CallLedger(std::unique_ptr<Communicator> host, absl::Duration period,
             std::function<void(const std::string& problem)> on_disagreement);
  // Compares what has been noted, and waits for that, a period at most. What the other ranks note
  // afterwards is not compared.
  ~CallLedger();
  CallLedger(const CallLedger&) = delete;
  CallLedger& operator=(const CallLedger&) = delete;

  // Of `size` ranks that all know the group by `name`, which no other group has; messages call this
  // one `rank`. The ledger outlives its pages.
  std::shared_ptr<Page> Open(const std::string& name, int size, int rank);

  bool disagreed() const { return disagreed_.load(std::memory_order_acquire); }
  void ThrowIfDisagreed() const;

 private:
  struct Row;

  void Run();
  // Returns whether a rank's ledger is ending, or nothing is left to compare.
  bool Meet(bool ending);
  std::vector<Row> MyRows();
  void Explain(const std::vector<std::pair<int, Row>>& rows);

  std::unique_ptr<Communicator> host_;
  const absl::Duration period_;
  const std::function<void(const std::string&)> on_disagreement_;
  std::string problem_;  // Written before disagreed_
  std::atomic<bool> disagreed_ = false;
  std::atomic<bool> stopped_ = false;  // Nobody compares any more

  std::mutex mutex_;  // For all below
  std::condition_variable changed_;
  std::map<uint64_t, std::shared_ptr<Page>> pages_;  // By the name's hash
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace shoal
