#include "bell.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <climits>

namespace rtp {
namespace {

static_assert(std::atomic<uint32_t>::is_always_lock_free && sizeof(std::atomic<uint32_t>) == 4);

// Between processes: not the private kind.
long futex(std::atomic<uint32_t>& word, int operation, uint32_t value, const timespec* time) {
  return syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), operation, value, time, nullptr, 0);
}

}  // namespace

void Bell::advance(uint32_t to) {
  uint32_t old = count.load();
  do {
    if (static_cast<int32_t>(to - old) <= 0) return;
  } while (!count.compare_exchange_weak(old, to));
  wake();
}

// Whoever is about to sleep has said so before it looks at the count for the last time; whoever
// advances it looks for sleepers afterwards. One of both sees the other.
void Bell::wake() {
  if (sleepers.load() != 0) futex(count, FUTEX_WAKE, INT_MAX, nullptr);
}

void Bell::sleep(uint32_t seen) {
  const timespec nap{0, std::chrono::nanoseconds(kNap).count()};
  sleepers.fetch_add(1);
  futex(count, FUTEX_WAIT, seen, &nap);
  sleepers.fetch_sub(1);
}

}  // namespace rtp
