// How long a wait may last, and how often it looks at the other processes.
#pragma once

#include "bell.h"
#include "ended.h"
#include "participant.h"

namespace rtp {

class Patience {
 public:
  explicit Patience(double timeout_s) : start_(SteadyClock::now()), next_look_(start_ + kNap) {
    constexpr double kLongest = 1e9;
    deadline_ =
        start_ + std::chrono::duration_cast<SteadyClock::duration>(
                     std::chrono::duration<double>(timeout_s < kLongest ? timeout_s : kLongest));
  }

  bool is_over() const { return SteadyClock::now() >= deadline_; }

  // Whether it is time to ask the system who lives.
  bool looks() {
    const auto now = SteadyClock::now();
    if (now < next_look_) return false;
    next_look_ = now + kNap;
    return true;
  }

 private:
  SteadyClock::time_point start_, next_look_, deadline_;
};

}  // namespace rtp
