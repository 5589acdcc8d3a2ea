// Copies a block of the KV cache and hashes it on the way: XXH3 with 128 bits, as the `xxhash`
// package has it for the same bytes.
//
// Each cache line is read once. It is written and hashed out of the same register, so the digest is
// that of the copy, whoever writes the source meanwhile. Writes go past the caches: a tier's blocks
// are more than these hold, and lines that are overwritten whole need not be read before.
#pragma once

#include <cstdint>

#include "isa.h"

namespace rtp {

constexpr int64_t kDigestLineBytes = 64;
// XXH3 hashes shorter input in other ways.
constexpr int64_t kMinDigestBytes = 256;

struct DigestCopy {
  void* target;        // aligned to kDigestLineBytes
  const void* source;  // the same; does not overlap
  int64_t bytes;       // whole lines, at least kMinDigestBytes
};

struct Digest {
  uint64_t high;
  uint64_t low;
};

}  // namespace rtp

RTP_PER_ISA(Digest digest_copy(const DigestCopy& op);)
