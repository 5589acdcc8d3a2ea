// New keys and values into their slots of the paged cache. A copy.
#pragma once

#include "isa.h"
#include "kv_layout.h"
#include "types.h"

namespace rtp {

struct WriteKv {
  DType dtype;
  const void* key;       // [n, num_kv_heads, head_dim]; tokens key_stride apart
  const void* value;     // the same, value_stride
  void* key_cache;       // [num_blocks, num_kv_heads, kBlockTokens, head_dim]: kv_layout.h
  void* value_cache;     // the same; blocks of both are block_stride elements apart
  const int64_t* slots;  // [n]: block * kBlockTokens + offset, or -1 for a token to leave out
  int64_t n, num_kv_heads, head_dim;
  int64_t key_stride, value_stride, block_stride;
};

}  // namespace rtp

// Tokens [begin, end). Slots differ. Tokens that fill a block together are written faster.
RTP_PER_ISA(void write_kv(const WriteKv& op, int64_t begin, int64_t end);)
