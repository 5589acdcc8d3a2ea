// Counter-based random numbers: Philox4x32-10 (Salmon et al., 2011). Integers alone, so the same on
// every machine.
#pragma once

#include <cstdint>

namespace rtp {

// In [0, 1), with 53 random bits.
inline double uniform(uint64_t seed, uint64_t position) {
  uint32_t counter[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32)};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t low = uint64_t{0xD2511F53} * counter[0];
    const uint64_t high = uint64_t{0xCD9E8D57} * counter[2];
    counter[0] = static_cast<uint32_t>(high >> 32) ^ counter[1] ^ key[0];
    counter[1] = static_cast<uint32_t>(high);
    counter[2] = static_cast<uint32_t>(low >> 32) ^ counter[3] ^ key[1];
    counter[3] = static_cast<uint32_t>(low);
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return static_cast<double>((uint64_t{counter[0]} << 32 | counter[1]) >> 11) * 0x1p-53;
}

}  // namespace rtp
