// Working memory of a thread, kept from call to call.
#pragma once

#include <cstdint>

#include "types.h"

namespace rtp {

// At least `floats` floats, 64-byte aligned, of undefined content; valid until the thread's next
// call. Throws std::bad_alloc.
float* thread_scratch(int64_t floats);

// The same for what the members of a team share in a call: the calling thread's, and not theirs.
char* call_memory(int64_t bytes);

// Pieces of a thread's scratch, each on cache lines of its own. A first pass without memory says
// how much there is to take.
class Pieces {
 public:
  RTP_ALWAYS_INLINE explicit Pieces(float* memory) : memory_(memory) {}

  template <typename T>
  RTP_ALWAYS_INLINE void take(T*& piece, int64_t count) {
    piece = memory_ ? reinterpret_cast<T*>(memory_ + floats_) : nullptr;
    floats_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 16;
  }
  RTP_ALWAYS_INLINE int64_t floats() const { return floats_; }

 private:
  float* const memory_;
  int64_t floats_ = 0;
};

}  // namespace rtp
