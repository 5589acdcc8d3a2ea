#include "kv_write.h"

#include <cstring>

namespace rtp {

void write_kv(const WriteKv& op) {
  constexpr int64_t kParallelBytes = 1 << 18;
  const int64_t bytes = op.n * op.num_kv_heads * op.head_bytes;
#pragma omp parallel for if (bytes > kParallelBytes)
  for (int64_t token = 0; token < op.n; ++token) {
    const int64_t slot = op.slots[token];
    if (slot < 0) continue;
    const int64_t block = slot / op.block_size, offset = slot % op.block_size;
    for (int64_t head = 0; head < op.num_kv_heads; ++head) {
      const int64_t row = (block * op.num_kv_heads + head) * op.block_size + offset;
      const int64_t source = head * op.head_bytes;
      std::memcpy(op.key_cache + row * op.head_bytes, op.key + token * op.key_stride + source,
                  op.head_bytes);
      std::memcpy(op.value_cache + row * op.head_bytes, op.value + token * op.value_stride + source,
                  op.head_bytes);
    }
  }
}

}  // namespace rtp
