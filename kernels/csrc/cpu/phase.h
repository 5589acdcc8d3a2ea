// A member's share of a phase: which of its units are begun, and which have ended.
//
// Both words carry the phase they are of, so that they are never set back: who comes to a phase
// first opens it, and a thread that comes late, however late, finds nothing to take and nothing to
// say. Phases are counted from 0 and wrap around.
#pragma once

#include <atomic>
#include <cstdint>

#include "team.h"

namespace rtp {

class alignas(64) Share {
 public:
  void open(uint32_t phase, int units) {
    // Ends first: whoever sees the units sees that none of them has ended.
    advance(ended_, phase, 0);
    advance(free_, phase, static_cast<uint32_t>(units));
  }

  // A unit that nobody has begun, or -1.
  int take_first(uint32_t phase) {
    uint64_t word = free_.load(std::memory_order_acquire);
    for (;;) {
      const uint32_t next = low(word) >> 16, end = low(word) & 0xffff;
      if (high(word) != phase || next >= end) return -1;
      if (replace(free_, word, pair(phase, (next + 1) << 16 | end))) return static_cast<int>(next);
    }
  }

  int take_last(uint32_t phase) {
    uint64_t word = free_.load(std::memory_order_acquire);
    for (;;) {
      const uint32_t next = low(word) >> 16, end = low(word) & 0xffff;
      if (high(word) != phase || next >= end) return -1;
      if (replace(free_, word, pair(phase, next << 16 | (end - 1)))) {
        return static_cast<int>(end - 1);
      }
    }
  }

  void end(uint32_t phase, int unit) {
    uint64_t word = ended_.load(std::memory_order_relaxed);
    while (high(word) == phase && !replace(ended_, word, word | uint64_t{1} << unit)) {
    }
  }

  // A bit for each of `units` that have not ended; none once a later phase is open.
  uint32_t unended(uint32_t phase, int units) const {
    const uint64_t word = ended_.load(std::memory_order_acquire);
    if (high(word) != phase) return 0;
    const uint64_t all = (uint64_t{1} << units) - 1;
    return static_cast<uint32_t>(all & ~low(word));
  }

 private:
  using Word = std::atomic<uint64_t>;

  static uint64_t pair(uint32_t phase, uint32_t rest) { return uint64_t{phase} << 32 | rest; }
  static uint32_t high(uint64_t word) { return static_cast<uint32_t>(word >> 32); }
  static uint32_t low(uint64_t word) { return static_cast<uint32_t>(word); }

  static bool replace(Word& word, uint64_t& old, uint64_t with) {
    return word.compare_exchange_weak(old, with, std::memory_order_acq_rel,
                                      std::memory_order_acquire);
  }

  // To `phase`, unless it is there or beyond.
  static void advance(Word& word, uint32_t phase, uint32_t rest) {
    uint64_t old = word.load(std::memory_order_acquire);
    while (static_cast<int32_t>(phase - high(old)) > 0 && !replace(word, old, pair(phase, rest))) {
    }
  }

  Word free_{0};   // phase, then the first and the end of the units to begin
  Word ended_{0};  // phase, then a bit a unit
};
static_assert(kMaxUnits <= 32);

}  // namespace rtp
