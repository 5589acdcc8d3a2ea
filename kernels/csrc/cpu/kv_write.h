// New keys and values into their slots of the paged cache. A copy: one build serves every level.
#pragma once

#include <cstdint>

namespace rtp {

struct WriteKv {
  const char* key;    // [n, num_kv_heads, head_dim]; tokens key_stride bytes apart
  const char* value;  // the same
  char* key_cache;    // [num_blocks, num_kv_heads, block_size, head_dim]
  char* value_cache;
  const int64_t* slots;  // [n]: block * block_size + offset, or -1 for a token to leave out
  int64_t n, num_kv_heads, block_size;
  int64_t head_bytes, key_stride, value_stride;
};

void write_kv(const WriteKv& op);

}  // namespace rtp
