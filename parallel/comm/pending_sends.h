// Messages that a thread's communicators have taken over and not yet handed on. A send never waits
// for its receiver: what the receiver has no room for is kept, and every wait of the sending
// thread, in whichever communicator, moves it on.
#pragma once

#include <functional>

namespace shoal {

// Of the calling thread.
class PendingSends {
 public:
  // `move_on` hands on what it can and returns whether nothing is left; it does not throw. At most
  // one an owner: a later one takes the place of an earlier one.
  static void Add(const void* owner, std::function<bool()> move_on);
  static void Remove(const void* owner);

  // Whether nothing is left.
  static bool MoveOn();
};

}  // namespace shoal
