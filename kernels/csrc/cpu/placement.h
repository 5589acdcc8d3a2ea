// Where the members of a team run: each on a core of its own, if they are as many as the cores that
// the caller may use.
//
// Threads that wake each other are often put on one core by the system and stay there, taking
// turns, while another core is idle.
#pragma once

#include <pthread.h>

#include <vector>

namespace rtp {

class Placement {
 public:
  // Of a team of `size`, the calling thread among them.
  explicit Placement(int size);

  // At the start of a call: holds the caller where it is, and moves `others` to the other cores.
  // One that may not run on all the cores of the team's maker is left alone.
  void hold(const std::vector<pthread_t>& others);

  // At its end: the caller may run where it could before.
  void release() const;

 private:
  bool is_caller_free() const;

  std::vector<int> cores_;  // of who made the team; empty where nobody is held
  int first_ = -1;          // core of the caller in the last call that was held
  bool is_held_ = false;    // in this call
};

}  // namespace rtp
