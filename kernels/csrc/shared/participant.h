// One process's part in a piece of shared memory: whether it has come, still lives, has left.
#pragma once

#include <atomic>

#include "process.h"

namespace rtp {

struct alignas(64) Participant {
  Process process;
  std::atomic<int> state;
  std::atomic<int> is_taken;

  // The calling process takes the place; throws std::invalid_argument if somebody has.
  void join();
  void leave() { state.store(kLeft); }

  // Whether it will not do anything any more. One that has not come yet is not gone.
  bool has_left() const { return state.load(std::memory_order_acquire) == kLeft; }
  bool has_died() const {
    return state.load(std::memory_order_acquire) == kJoined && !process.is_alive();
  }

 private:
  static constexpr int kJoined = 1, kLeft = 2;
};

}  // namespace rtp
