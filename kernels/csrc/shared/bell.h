// A count in shared memory that one process advances and others wait for: they look at it for a
// short while, and then sleep.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

namespace rtp {

using SteadyClock = std::chrono::steady_clock;

// Looking without pause for so long; then between yields, so that whoever wants the core has it:
// there may be more processes than cores, and the one that is waited for must run.
constexpr auto kOwnLook = std::chrono::microseconds(5);
constexpr auto kLook = std::chrono::microseconds(50);

// The longest sleep: as often one looks whether there still is who could ring.
constexpr auto kNap = std::chrono::milliseconds(100);

struct alignas(64) Bell {
  std::atomic<uint32_t> count;
  std::atomic<uint32_t> sleepers;

  void ring() {
    count.fetch_add(1);
    wake();
  }

  // To `to`, unless it is there or beyond: may be repeated, however late.
  void advance(uint32_t to);

  bool has_come_to(uint32_t to) const {
    return static_cast<int32_t>(count.load(std::memory_order_acquire) - to) >= 0;
  }

  void wake();

  // Until it is rung, unless its count is no longer `seen`, or for kNap.
  void sleep(uint32_t seen);
};

inline void pause_core() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Returns when is_over(). Beside looking it calls watch(), which throws to end the wait; at least
// once in kNap, and each time that the bell has been rung.
template <typename IsOver, typename Watch>
void wait_at(Bell& bell, const IsOver& is_over, const Watch& watch) {
  if (is_over()) return;
  const auto start = SteadyClock::now();
  for (auto now = start; now < start + kLook; now = SteadyClock::now()) {
    for (int i = 0; i < 16; ++i) {
      if (is_over()) return;
      pause_core();
    }
    if (now > start + kOwnLook) std::this_thread::yield();
  }
  for (;;) {
    const uint32_t seen = bell.count.load();
    if (is_over()) return;
    watch();
    bell.sleep(seen);
  }
}

}  // namespace rtp
