// Where keys and values lie in the paged cache.
//
// A block has its keys and values of all layers together, so that it moves as one piece of memory:
//
//   [num_blocks, num_layers, 2 (key, value), num_kv_heads, kBlockTokens, head_dim]
//
// A layer's keys are [num_blocks, num_kv_heads, kBlockTokens, head_dim], blocks a stride apart. One
// head of one block is a contiguous tile. Inside it, in words of four bytes:
//
//              f32                     bf16, two elements a word
//   keys       [head_dim][16 tokens]   [head_dim / 2][16 tokens]: dims 2i and 2i + 1 of a token
//   values     [16 tokens][head_dim]   [8][head_dim]: tokens 2i and 2i + 1 of a dim
//
// So attention loads a register of tokens' keys or of columns of values as it lies there, for a
// product of pairs (VDPBF16PS) as well as to be widened, which takes a word's halves apart.
#pragma once

#include <cstdint>

#include "types.h"

namespace rtp {

constexpr int kBlockTokens = 16;

constexpr int word_elements(DType dtype) { return dtype == DType::kBf16 ? 2 : 1; }

// Words of one head of one block. head_dim is even.
constexpr int64_t tile_words(DType dtype, int64_t head_dim) {
  return kBlockTokens * head_dim / word_elements(dtype);
}

}  // namespace rtp
