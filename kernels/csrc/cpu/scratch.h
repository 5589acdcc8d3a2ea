// Working memory of a thread, kept from call to call.
#pragma once

#include <cstdint>

namespace rtp {

// At least `floats` floats, 64-byte aligned, of undefined content; valid until the thread's next
// call. Throws std::bad_alloc.
float* thread_scratch(int64_t floats);

}  // namespace rtp
