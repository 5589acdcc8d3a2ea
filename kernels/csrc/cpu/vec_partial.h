// What a level without masks does through the stack: the first lanes of a register, and rounding.
#pragma once

#include "types.h"

namespace rtp::RTP_ISA_NAMESPACE {

RTP_INLINE VecF round_to_bf16(VecF v) {
  bf16 lanes[kLanes];
  store(lanes, v);
  return load(lanes);
}

template <typename T>
RTP_INLINE VecF load_first(const T* source, int count) {
  T lanes[kLanes] = {};
  __builtin_memcpy(lanes, source, count * sizeof(T));
  return load(lanes);
}

template <typename T>
RTP_INLINE void store_first(T* target, VecF v, int count) {
  T lanes[kLanes];
  store(lanes, v);
  __builtin_memcpy(target, lanes, count * sizeof(T));
}

RTP_INLINE VecF load_words(const void* source, int count) {
  float words[kLanes] = {};
  __builtin_memcpy(words, source, count * sizeof(float));
  return load(words);
}

}  // namespace rtp::RTP_ISA_NAMESPACE
