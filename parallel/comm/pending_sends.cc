#include "parallel/comm/pending_sends.h"

#include <map>
#include <utility>

namespace shoal {
namespace {

std::map<const void*, std::function<bool()>>& OfThisThread() {
  thread_local std::map<const void*, std::function<bool()>> pending;
  return pending;
}

}  // namespace

void PendingSends::Add(const void* owner, std::function<bool()> move_on) {
  OfThisThread()[owner] = std::move(move_on);
}

void PendingSends::Remove(const void* owner) { OfThisThread().erase(owner); }

bool PendingSends::MoveOn() {
  auto& pending = OfThisThread();
  for (auto entry = pending.begin(); entry != pending.end();) {
    entry = entry->second() ? pending.erase(entry) : std::next(entry);
  }
  return pending.empty();
}

}  // namespace shoal
