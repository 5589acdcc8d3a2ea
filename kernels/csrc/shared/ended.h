// Why a wait for another process ended without what was waited for.
#pragma once

#include <exception>

namespace rtp {

enum class End {
  kTimeout,  // it did not come in time
  kLost,     // it has died, or has left
  kAborted,  // it has ended the work of all
  kClosed,   // this side has closed what it waits at, or the writer has
};

// Of a step ring the writer has this number, readers count from 0.
constexpr int kWriter = -1;

struct Ended : std::exception {
  Ended(End how_, int rank_) : how(how_), rank(rank_) {}

  End how;
  int rank;  // whose doing it is
};

}  // namespace rtp
