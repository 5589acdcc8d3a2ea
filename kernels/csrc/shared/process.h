// Who takes part in shared memory: a process, by its number and the time of its start. The system
// gives a number again, but not with the same start.
#pragma once

#include <cstdint>

namespace rtp {

struct Process {
  int64_t pid;
  int64_t start;  // clock ticks since the system's

  static Process own();

  // False once it runs no more, whether or not its parent has asked for it.
  bool is_alive() const;
};

}  // namespace rtp
