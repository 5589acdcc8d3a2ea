#include "worker_numbers.h"

#include <algorithm>

namespace rtp {

int64_t free_blocks(const WorkerColumns& workers, const int64_t* slots, int64_t count,
                    int64_t demand, int64_t* free) {
  int64_t fitting = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t slot = slots[i];
    free[i] = std::min(workers.num_blocks[slot] - workers.reserved_blocks[slot],
                       workers.num_free_blocks[slot]);
    fitting += free[i] >= demand;
  }
  return fitting;
}

int64_t worker_numbers(const WorkerColumns& workers, const Prompt& prompt, const int64_t* slots,
                       int64_t count, const int64_t* cached_blocks, const int64_t* free,
                       const Numbers& out) {
  int64_t longest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t slot = slots[i];
    const int64_t cached = std::min(cached_blocks[slot] * prompt.block_size, prompt.num_tokens - 1);
    const double num_new = static_cast<double>(prompt.num_tokens - cached);
    const double attended = num_new * 0.5 + static_cast<double>(cached);
    const double token_s = attended * workers.attention_s[slot] + workers.token_s[slot];
    out.prefill_s[i] = token_s * num_new + workers.base_s[slot];
    const double had_s = std::min(prompt.now - workers.head_start_s[slot], workers.head_s[slot]);
    out.wait_s[i] = std::max(workers.pending_s[slot] - had_s, 0.0);
    out.free_fraction[i] = static_cast<double>(free[i]) /
                           static_cast<double>(std::max<int64_t>(workers.num_blocks[slot], 1));
    out.num_cached_tokens[i] = cached;
    longest = std::max(longest, cached);
    out.num_in_flight[i] = workers.num_in_flight[slot];
    out.num_decoding[i] = workers.num_decoding[slot];
  }
  return longest;
}

}  // namespace rtp
