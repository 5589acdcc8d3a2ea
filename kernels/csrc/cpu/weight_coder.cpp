#include "weight_coder.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>

namespace rtp {
namespace {

const bf16* plain_strip(const PackedMatrix& plain, int64_t index) {
  return reinterpret_cast<const bf16*>(strip_of(plain, index));
}

int64_t plain_pairs(const PackedMatrix& plain) { return (plain.k + 1) / 2; }

// The upper bytes of a strip, and the code of each.
struct Codes {
  std::array<uint8_t, 16> uppers{};
  std::array<uint8_t, 256> codes;
  int64_t num_escapes = 0;

  Codes(const bf16* strip, int64_t num_weights) {
    std::array<uint32_t, 256> counts{};
    for (int64_t i = 0; i < num_weights; ++i) ++counts[strip[i].bits >> 8];
    std::array<int, 256> order;
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + kEscapeCode, order.end(), [&](int a, int b) {
      return counts[a] != counts[b] ? counts[a] > counts[b] : a < b;
    });
    codes.fill(kEscapeCode);
    num_escapes = num_weights;
    for (int code = 0; code < kEscapeCode; ++code) {
      uppers[code] = static_cast<uint8_t>(order[code]);
      codes[order[code]] = static_cast<uint8_t>(code);
      num_escapes -= counts[order[code]];
    }
  }
};

void code_strip(uint8_t* out, bf16* escapes, int64_t first, const bf16* strip, int64_t k) {
  const int64_t pairs = (k + 1) / 2;
  const Codes codes(strip, pairs * kPairWeights);
  const uint32_t own[2] = {static_cast<uint32_t>(first),
                           static_cast<uint32_t>(first + codes.num_escapes)};
  std::memset(out, 0, coded_strip_bytes(k));
  std::memcpy(out, codes.uppers.data(), codes.uppers.size());
  std::memcpy(out + codes.uppers.size(), own, sizeof own);
  auto* const escaped = reinterpret_cast<uint64_t*>(out + 24);
  out += coded_head_bytes(k);
  for (int64_t group = 0; group < coded_groups(k); ++group, out += kCodedGroupBytes) {
    for (int64_t half = 0; half < 2 && 2 * group + half < pairs; ++half) {
      const bf16* pair = strip + (2 * group + half) * kPairWeights;
      for (int i = 0; i < kPairWeights; ++i) {
        const int place = coded_place(i);
        const uint8_t code = codes.codes[pair[i].bits >> 8];
        out[half * kPairWeights + place] = static_cast<uint8_t>(pair[i].bits);
        out[2 * kPairWeights + place] |= static_cast<uint8_t>(code << 4 * half);
        if (code != kEscapeCode) continue;
        *escapes++ = pair[i];
        escaped[group / 64] |= uint64_t{1} << group % 64;
      }
    }
  }
}

int code_at(const uint8_t* group, int64_t half, int i) {
  return group[2 * kPairWeights + coded_place(i)] >> 4 * half & 15;
}

// How many come before weight `i` of pair `pair` in the strip's list.
int64_t escapes_before(const CodedStrip& strip, int64_t pair, int i) {
  int64_t count = 0;
  for (int64_t p = 0; p <= pair; ++p) {
    const uint8_t* group = strip.groups + p / 2 * kCodedGroupBytes;
    const int end = p < pair ? static_cast<int>(kPairWeights) : i;
    for (int j = 0; j < end; ++j) count += code_at(group, p % 2, j) == kEscapeCode;
  }
  return count;
}

}  // namespace

void count_escapes(int64_t* counts, const PackedMatrix& plain, const Member& member) {
  const int64_t strips = (plain.n + kStripOutputs - 1) / kStripOutputs;
  member.split(strips, 1, Repeats::kNo, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t num_weights = plain_pairs(plain) * kPairWeights;
      counts[i] = Codes(plain_strip(plain, i), num_weights).num_escapes;
    }
  });
}

void code_strips(uint8_t* out, bf16* escapes, const int64_t* first, const PackedMatrix& plain,
                 const Member& member) {
  const int64_t strips = (plain.n + kStripOutputs - 1) / kStripOutputs;
  member.split(strips, 1, Repeats::kNo, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      code_strip(out + i * coded_strip_bytes(plain.k), escapes + first[i], first[i],
                 plain_strip(plain, i), plain.k);
    }
  });
}

void gather_coded_row(bf16* out, const PackedMatrix& weight, int64_t row) {
  const CodedStrip strip(strip_of(weight, row / kStripOutputs), weight.escapes, weight.k);
  for (int64_t k = 0; k < weight.k; ++k) {
    const int64_t pair = k / 2;
    const int i = static_cast<int>(row % kStripOutputs * 2 + k % 2);
    const uint8_t* group = strip.groups + pair / 2 * kCodedGroupBytes;
    const int code = code_at(group, pair % 2, i);
    if (code == kEscapeCode) {
      const bf16* escape = strip.escapes + escapes_before(strip, pair, i);
      out[k] = escape < strip.end ? *escape : bf16{};
    } else {
      const uint8_t lower = group[pair % 2 * kPairWeights + coded_place(i)];
      out[k] = {static_cast<uint16_t>(strip.uppers[code] << 8 | lower)};
    }
  }
}

}  // namespace rtp
