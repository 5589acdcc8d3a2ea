#include "screen.h"

#include "norm_row.h"
#include "vec.h"

namespace rtp::RTP_ISA_NAMESPACE {
namespace {

// Outputs of half a strip. Vectors of the compiler's: integers are the same at every level, and
// what is done with floats here has room for another rounding.
constexpr int kHalf = kStripOutputs / 2;
typedef int32_t Ints __attribute__((vector_size(4 * kHalf)));
typedef float Floats __attribute__((vector_size(4 * kHalf)));

constexpr int64_t kFours = 4;  // k that an output's word has
constexpr int64_t kWordsBytes = kFours * kStripOutputs;

// The largest |p|: its digits stay in 8 bits.
constexpr float kMaxStep = 127 * 256;

// Beyond it products of lengths are not sure to be finite.
constexpr double kMaxLength = 1e18;

// Rounds up, with room for a few roundings after it.
constexpr float kUp = 1 + 1.0f / (1 << 20);

// Adds the products of four k: words of weights with the same four of x.
RTP_INLINE Ints add_fours(Ints sums, Ints weights, int32_t x) {
#if defined(RTP_HAS_AVX512_BF16)
  return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)weights, _mm512_set1_epi32(x));
#else
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) sums += (weights >> (8 * i) & 255) * static_cast<int8_t>(x >> 8 * i);
  return sums;
#endif
}

template <typename V>
RTP_INLINE V load_as(const void* source) {
  V v;
  __builtin_memcpy(&v, source, sizeof v);
  return v;
}

RTP_INLINE Floats splat(float value) { return Floats{} + value; }
RTP_INLINE Floats absolute(Floats v) { return v < 0 ? -v : v; }

RTP_INLINE float largest_of(Floats v) {
  float largest = v[0];
  for (int i = 1; i < kHalf; ++i) largest = v[i] > largest ? v[i] : largest;
  return largest;
}

// Rows of a tile that leave registers for the weights of one or two strips.
template <int kStrips>
constexpr int kTileRows = 6 / kStrips;

// Some rows by a strip, or by two.
struct Tile {
  const Screening& op;
  int64_t strip, distance;  // the first strip, and how many on the second one is
  int64_t row;
  const char* ahead;  // what is fetched meanwhile, of each strip
  int64_t ahead_step;

  RTP_MEMBER const char* strip_at(int i) const {
    const int64_t index = strip + i * distance;
    return reinterpret_cast<const char*>(op.screen.data) + index * screen_strip_bytes(op.screen.k);
  }
};

// What the sums of half a strip say of its outputs.
struct Bounds {
  Floats most, least;
};

RTP_INLINE Bounds bounds_of(const ScreenedRow& row, const char* numbers, int half,
                            const Ints (&digits)[2]) {
  const char* own = numbers + half * sizeof(Floats);
  constexpr int64_t kApart = kStripOutputs * sizeof(float);
  const Floats unit = load_as<Floats>(own) * row.step;
  const Floats high = __builtin_convertvector(digits[0], Floats) * 256;
  const Floats low = __builtin_convertvector(digits[1], Floats);
  const Floats estimate = (high + low) * unit;
  constexpr float kRoundings = 1.0f / (1 << 21);
  const Floats bound = load_as<Floats>(own + kApart) * row.length +
                       load_as<Floats>(own + 2 * kApart) * row.error +
                       (absolute(high) + absolute(low)) * unit * kRoundings;
  return {estimate + bound, estimate - bound};
}

// Keeps the strip's extremes of a row.
RTP_INLINE void keep(const Screening& op, int64_t row, int64_t strip, const char* numbers,
                     const Ints (&sums)[2][2]) {
  const ScreenedRow& own = op.numbers[row];
  const Bounds left = bounds_of(own, numbers, 0, sums[0]);
  const Bounds right = bounds_of(own, numbers, 1, sums[1]);
  const int64_t index = row * op.screen.num_strips() + strip;
  const int64_t count = op.screen.n - strip * kStripOutputs;
  if (count >= kStripOutputs) {
    op.most[index] = largest_of(left.most > right.most ? left.most : right.most);
    op.least[index] = largest_of(left.least > right.least ? left.least : right.least);
    return;
  }
  op.most[index] = op.least[index] = -__builtin_inff();
  for (int i = 0; i < count; ++i) {
    const Bounds& half = i < kHalf ? left : right;
    const float most = half.most[i % kHalf], least = half.least[i % kHalf];
    if (most > op.most[index]) op.most[index] = most;
    if (least > op.least[index]) op.least[index] = least;
  }
}

template <int kRows, int kStrips>
__attribute__((noinline)) void screen_tile(const Tile& tile) {
  const Screening& op = tile.op;
  const int64_t stride = (op.screen.k + kFours - 1) / kFours * kFours;
  const int64_t groups = stride / kFours;
  const int8_t* digits = op.digits + tile.row * 2 * stride;
  const char* weights = tile.strip_at(0);
  const int64_t stream = tile.strip_at(1) - weights;
  const char* ahead = tile.ahead;
  Ints sums[kRows][kStrips][2][2];  // by half, by digit
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
    for (int i = 0; i < 4 * kStrips; ++i) {
      sums[row][i / 4][i / 2 % 2][i % 2] = Ints{} + op.numbers[tile.row + row].sums[i % 2];
    }
  }
  for (int64_t group = 0; group < groups; ++group, weights += kWordsBytes) {
    Ints words[kStrips][2];
#pragma GCC unroll 2
    for (int i = 0; i < kStrips; ++i) {
      __builtin_prefetch(ahead + i * stream, 0, 2);
      __builtin_prefetch(ahead + i * stream + 64, 0, 2);
      words[i][0] = load_as<Ints>(weights + i * stream);
      words[i][1] = load_as<Ints>(weights + i * stream + sizeof(Ints));
    }
    ahead += tile.ahead_step;
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 2
      for (int digit = 0; digit < 2; ++digit) {
        const int32_t x = load_as<int32_t>(digits + (2 * row + digit) * stride + group * kFours);
#pragma GCC unroll 4
        for (int i = 0; i < 2 * kStrips; ++i) {
          Ints& sum = sums[row][i / 2][i % 2][digit];
          sum = add_fours(sum, words[i / 2][i % 2], x);
        }
      }
    }
  }
#pragma GCC unroll 2
  for (int i = 0; i < kStrips; ++i) {
    for (int64_t byte = 0; byte < screen_strip_bytes(0); byte += 64) {
      __builtin_prefetch(ahead + i * stream + byte, 0, 2);
    }
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      keep(op, tile.row + row, tile.strip + i * tile.distance, weights + i * stream, sums[row][i]);
    }
  }
}

template <int kRows, int kStrips>
void screen_rows(const Tile& tile, int64_t rows) {
  if (rows == kRows) {
    screen_tile<kRows, kStrips>(tile);
  } else if constexpr (kRows > 1) {
    screen_rows<kRows - 1, kStrips>(tile, rows);
  }
}

// All rows by one strip, or by two. Several tiles of rows fetch the next strip between them, a
// single one fetches its own.
template <int kStrips>
void screen_strips(const Screening& op, int64_t strip, int64_t distance) {
  constexpr int64_t kOwnAhead = 2048;
  const int64_t tiles = (op.m + kTileRows<kStrips> - 1) / kTileRows<kStrips>;
  const int64_t bytes = screen_strip_bytes(op.screen.k);
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t row = op.m * i / tiles, end = op.m * (i + 1) / tiles;
    Tile tile{op, strip, distance, row, nullptr, kWordsBytes / tiles};
    tile.ahead = tile.strip_at(0) + (tiles > 1 ? bytes + bytes * i / tiles : kOwnAhead);
    screen_rows<kTileRows<kStrips>, kStrips>(tile, end - row);
  }
}

RTP_INLINE float rounded_up(double value) { return static_cast<float>(value) * kUp; }

// The row's norm, and that in digits.
void prepare_row(const Screening& op, int64_t row) {
  const int64_t k = op.screen.k, stride = (k + kFours - 1) / kFours * kFours;
  bf16* normed = op.normed + row * k;
  norm_row(normed, op.x + (op.rows ? op.rows[row] : row) * op.x_stride, op.norm_weight, k, op.eps);
  int8_t* high = op.digits + 2 * row * stride;
  int8_t* low = high + stride;
  float largest = 0;
  double squares = 0;
  const auto value_at = [&](int64_t i) {
    return __builtin_bit_cast(float, static_cast<uint32_t>(normed[i].bits) << 16);
  };
  for (int64_t i = 0; i < k; ++i) {
    const float value = value_at(i), size = value < 0 ? -value : value;
    largest = size > largest ? size : largest;
    squares += static_cast<double>(value) * value;
  }
  ScreenedRow& own = op.numbers[row];
  own = {largest / kMaxStep, rounded_up(__builtin_sqrt(squares)), 0, {0, 0}};
  const bool is_usable = own.step > 1e-30f && own.length < kMaxLength;
  const float scale = is_usable ? 1 / own.step : 0;
  double errors = 0;
  int32_t sums[2] = {};
  for (int64_t i = 0; i < stride; ++i) {
    const float value = i < k && is_usable ? value_at(i) : 0;
    const float steps = __builtin_rintf(value * scale);
    const int32_t p = static_cast<int32_t>(steps), digit = (p + 128) >> 8;
    high[i] = static_cast<int8_t>(digit);
    low[i] = static_cast<int8_t>(p - 256 * digit);
    sums[0] += digit;
    sums[1] += p - 256 * digit;
    const double error = value - static_cast<double>(own.step) * p;
    errors += error * error;
  }
  own.error = rounded_up(__builtin_sqrt(errors));
  for (int i = 0; i < 2; ++i) own.sums[i] = -128 * sums[i];
  if (!is_usable) own.length = __builtin_nanf("");
}

// What linear() may add to each product's sum by rounding, relative to |w| |x|: two roundings of
// 2^-24 for each product, and as much again.
RTP_INLINE double rounding_of(int64_t k) { return static_cast<double>(k + 16) / (1 << 22); }

// Strip `index` of the weight on its way into the screen's.
void make_strip(uint8_t* out, const bf16* strip, int64_t k) {
  constexpr int kOutputs = kStripOutputs;
  const auto value_at = [&](int64_t i, int output) {
    const uint32_t bits = strip[i / 2 * 2 * kOutputs + 2 * output + i % 2].bits;
    return __builtin_bit_cast(float, bits << 16);
  };
  float largest[kOutputs] = {}, scales[kOutputs], inverses[kOutputs];
  double squares[kOutputs] = {}, errors[kOutputs] = {}, lengths[kOutputs] = {};
  for (int64_t i = 0; i < k; ++i) {
    for (int output = 0; output < kOutputs; ++output) {
      const float value = value_at(i, output), size = value < 0 ? -value : value;
      largest[output] = size > largest[output] ? size : largest[output];
      squares[output] += static_cast<double>(value) * value;
    }
  }
  for (int output = 0; output < kOutputs; ++output) {
    const bool is_usable = largest[output] > 1e-30f && squares[output] < kMaxLength * kMaxLength;
    scales[output] = is_usable ? largest[output] / 127 : 0;
    inverses[output] = is_usable ? 127 / largest[output] : 0;
  }
  __builtin_memset(out, 128, screen_values_bytes(k));
  for (int64_t i = 0; i < k; ++i) {
    uint8_t* words = out + i / kFours * kWordsBytes + i % kFours;
    for (int output = 0; output < kOutputs; ++output) {
      const float value = value_at(i, output);
      const float steps = inverses[output] ? __builtin_rintf(value * inverses[output]) : 0;
      words[output * kFours] = static_cast<uint8_t>(static_cast<int32_t>(steps) + 128);
      const double near = static_cast<double>(scales[output]) * steps, error = value - near;
      errors[output] += error * error;
      lengths[output] += near * near;
    }
  }
  float numbers[3][kOutputs];
  for (int output = 0; output < kOutputs; ++output) {
    const double length = __builtin_sqrt(squares[output]);
    const double error = __builtin_sqrt(errors[output]) + rounding_of(k) * length + 1e-30;
    // Without an end of its own: it is never ruled out.
    const bool is_open = !(length < kMaxLength);
    numbers[0][output] = scales[output];
    numbers[1][output] = is_open ? __builtin_inff() : rounded_up(error);
    numbers[2][output] = is_open ? 0 : rounded_up(__builtin_sqrt(lengths[output]));
  }
  __builtin_memcpy(out + screen_values_bytes(k), numbers, sizeof numbers);
}

}  // namespace

void screen(const Screening& op, const Member& member) {
  member.split(op.m, 1, Repeats::kYes, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) prepare_row(op, row);
  });
  member.split(op.screen.num_strips(), 1, Repeats::kYes, [&](int64_t begin, int64_t end) {
    // Few rows: two halves side by side, for reading two streams is faster than one.
    const int64_t pairs = op.m <= kTileRows<2> ? (end - begin) / 2 : 0;
    for (int64_t i = 0; i < pairs; ++i) screen_strips<2>(op, begin + i, pairs);
    for (int64_t i = begin + 2 * pairs; i < end; ++i) screen_strips<1>(op, i, 0);
  });
}

void make_screen(uint8_t* out, const PackedMatrix& weight, const Member& member) {
  const int64_t k = weight.k, strips = (weight.n + kStripOutputs - 1) / kStripOutputs;
  const int64_t strip_elements = (k + 1) / 2 * 2 * kStripOutputs;
  member.split(strips, 1, Repeats::kNo, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      make_strip(out + i * screen_strip_bytes(k),
                 static_cast<const bf16*>(weight.data) + i * strip_elements, k);
    }
  });
}

bool has_fast_screen() {
#if defined(RTP_HAS_AVX512_BF16)
  return true;
#else
  return false;
#endif
}

}  // namespace rtp::RTP_ISA_NAMESPACE
