#include "participant.h"

#include <stdexcept>

namespace rtp {

void Participant::join() {
  if (is_taken.exchange(1)) throw std::invalid_argument("somebody else has joined in this place");
  process = Process::own();
  state.store(kJoined, std::memory_order_release);
}

}  // namespace rtp
