#include "kv_write.h"

#include <utility>

#include "vec.h"

namespace rtp::RTP_ISA_NAMESPACE {
namespace {

template <int kStep, int... kLane>
RTP_INLINE void exchange(VecF& a, VecF& b, std::integer_sequence<int, kLane...>) {
  const VecF low =
      __builtin_shufflevector(a, b, (kLane & kStep ? kLane - kStep + kLanes : kLane)...);
  const VecF high =
      __builtin_shufflevector(a, b, (kLane & kStep ? kLane + kLanes : kLane + kStep)...);
  a = low;
  b = high;
}

// Square of kLanes registers; each stage swaps the off-diagonal squares of side kStep.
template <int kStep = kLanes / 2>
RTP_INLINE void transpose(VecF (&rows)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (!(i & kStep)) {
      exchange<kStep>(rows[i], rows[i + kStep], std::make_integer_sequence<int, kLanes>());
    }
  }
  if constexpr (kStep > 1) transpose<kStep / 2>(rows);
}

// Rows of bits, so that nothing is converted on the way.
template <typename Bits>
class Writer {
  static constexpr int kElements = 4 / sizeof(Bits);  // of a word

 public:
  explicit Writer(const WriteKv& op) : op_(op), key_words_(op.head_dim / kElements) {}

  // Tokens [begin, end).
  void write(int64_t begin, int64_t end) const {
    for (int64_t token = begin; token < end;) {
      const bool is_block = fills_block(token, end);
      if (op_.slots[token] >= 0) {
        for (int64_t head = 0; head < op_.num_kv_heads; ++head) {
          is_block ? write_block(token, head) : write_token(token, head);
        }
      }
      token += is_block ? kBlockTokens : 1;
    }
  }

 private:
  bool fills_block(int64_t token, int64_t end) const {
    const int64_t slot = op_.slots[token];
    if (slot < 0 || slot % kBlockTokens || token + kBlockTokens > end) return false;
    for (int i = 1; i < kBlockTokens; ++i) {
      if (op_.slots[token + i] != slot + i) return false;
    }
    return true;
  }

  const Bits* key(int64_t token, int64_t head) const {
    return static_cast<const Bits*>(op_.key) + token * op_.key_stride + head * op_.head_dim;
  }
  const Bits* value(int64_t token, int64_t head) const {
    return static_cast<const Bits*>(op_.value) + token * op_.value_stride + head * op_.head_dim;
  }
  Bits* tile(void* cache, int64_t token, int64_t head) const {
    const int64_t block = op_.slots[token] / kBlockTokens;
    return static_cast<Bits*>(cache) + block * op_.block_stride +
           head * kBlockTokens * op_.head_dim;
  }

  void write_block(int64_t token, int64_t head) const {
    Bits* keys = tile(op_.key_cache, token, head);
    for (int64_t word = 0; word < key_words_; word += kLanes) {
      for (int first = 0; first < kBlockTokens; first += kLanes) {
        write_square(key(token + first, head) + word * kElements, key_words_ - word,
                     keys + (word * kBlockTokens + first) * kElements);
      }
    }
    Bits* values = tile(op_.value_cache, token, head);
    for (int i = 0; i < kBlockTokens; i += kElements, values += kElements * op_.head_dim) {
      write_rows(value(token + i, head), values);
    }
  }

  // Words of kLanes tokens, at most kLanes a token, of which `words` are there.
  void write_square(const Bits* keys, int64_t words, Bits* target) const {
    const int count = static_cast<int>(words < kLanes ? words : kLanes);
    VecF rows[kLanes];
#pragma GCC unroll 16
    for (int lane = 0; lane < kLanes; ++lane) {
      rows[lane] = load_words(keys + lane * op_.key_stride, count);
    }
    transpose(rows);
#pragma GCC unroll 16
    for (int word = 0; word < kLanes; ++word) {
      if (word < count) {
        __builtin_memcpy(target + word * kBlockTokens * kElements, &rows[word], sizeof rows[word]);
      }
    }
  }

  // The values of as many tokens as a word has elements.
  void write_rows(const Bits* values, Bits* target) const {
    if constexpr (kElements == 1) {
      __builtin_memcpy(target, values, op_.head_dim * sizeof(Bits));
    } else {
      const Bits* next = values + op_.value_stride;
      for (int64_t i = 0; i < op_.head_dim; ++i) {
        target[2 * i] = values[i];
        target[2 * i + 1] = next[i];
      }
    }
  }

  void write_token(int64_t token, int64_t head) const {
    const int64_t offset = op_.slots[token] % kBlockTokens;
    const Bits* from = key(token, head);
    Bits* keys = tile(op_.key_cache, token, head) + offset * kElements;
    for (int64_t word = 0; word < key_words_; ++word) {
      __builtin_memcpy(keys + word * kBlockTokens * kElements, from + word * kElements, 4);
    }
    from = value(token, head);
    Bits* values = tile(op_.value_cache, token, head) +
                   offset / kElements * kElements * op_.head_dim + offset % kElements;
    for (int64_t i = 0; i < op_.head_dim; ++i) values[i * kElements] = from[i];
  }

  const WriteKv& op_;
  const int64_t key_words_;
};

}  // namespace

void write_kv(const WriteKv& op, int64_t begin, int64_t end) {
  op.dtype == DType::kBf16 ? Writer<uint16_t>(op).write(begin, end)
                           : Writer<uint32_t>(op).write(begin, end);
}

}  // namespace rtp::RTP_ISA_NAMESPACE
