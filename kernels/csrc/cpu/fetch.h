// Bringing memory that is read next into the cache of the core that waits meanwhile.
#pragma once

#include "team.h"

namespace rtp {

// As much as stays in a second-level cache beside what is read in between.
constexpr int64_t kFetchBytes = 64 << 10;

// Until `is_over` or there is enough.
template <typename Condition>
void fetch_until(const Condition& is_over, const Ahead& ahead) {
  const int64_t bytes = ahead.bytes < kFetchBytes ? ahead.bytes : kFetchBytes;
  for (int64_t i = 0; i < bytes && !is_over(); i += 256) {
    for (const char* stream : ahead.streams) {
      for (int line = 0; stream && line < 256; line += 64) {
        __builtin_prefetch(stream + i + line, 0, 2);
      }
    }
  }
}

}  // namespace rtp
