// What a request would take at each worker, from the columns of the Master's tables.
//
// Arithmetic is in doubles, one operation after the other as numpy has it, and nothing is fused:
// the numbers are the same bit for bit as those of array operations.
#pragma once

#include <cstdint>

namespace rtp {

// One element a slot. They change between calls.
struct WorkerColumns {
  const int64_t* num_blocks;
  const int64_t* num_free_blocks;
  const int64_t* reserved_blocks;
  const int64_t* num_in_flight;
  const int64_t* num_decoding;
  const double* pending_s;     // predicted for what waits, its head and all
  const double* head_s;        // predicted for the first in line
  const double* head_start_s;  // when that began
  const double* base_s;        // of a prefill
  const double* token_s;
  const double* attention_s;
};

// Blocks neither held nor promised, of `count` slots; how many of them have `demand`.
int64_t free_blocks(const WorkerColumns& workers, const int64_t* slots, int64_t count,
                    int64_t demand, int64_t* free);

struct Prompt {
  int64_t num_tokens;
  int64_t block_size;
  double now;
};

// Rows of `count` elements each.
struct Numbers {
  double* wait_s;
  double* prefill_s;
  double* free_fraction;
  int64_t* num_cached_tokens;
  int64_t* num_in_flight;
  int64_t* num_decoding;
};

// Of `count` slots, with the blocks that each slot of the fleet has cached and each of these free.
// Returns the most cached tokens that any of them has.
int64_t worker_numbers(const WorkerColumns& workers, const Prompt& prompt, const int64_t* slots,
                       int64_t count, const int64_t* cached_blocks, const int64_t* free,
                       const Numbers& out);

}  // namespace rtp
