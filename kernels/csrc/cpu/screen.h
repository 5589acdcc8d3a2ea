// Which outputs of a product cannot be its largest, from a copy of the weight of half its bytes.
//
// A row of the weight is w = s q + e with q in 8 bits, a row of x is t p + d with p in 16, and
//   |w·x - s t (q·p)| <= |e| |x| + |s q| |d|
// by Cauchy and Schwarz. What linear() makes of w·x is off by no more than its roundings are. An
// output whose estimate and bound together stay below the estimate less the bound of another is not
// the largest, in linear()'s own bits. Only bf16 weights have such a copy.
//
// Layout, the same at every instruction set: strips of kStripOutputs outputs, each contiguous:
//   uint8   [ceil(k / 4)][32][4]   q + 128: four k of an output side by side, as VPDPBUSD has them
//   f32     [3][32]                s; |e| and what roundings add to it; |s q|
// What is beyond k has q = 0.
#pragma once

#include "gemm.h"

namespace rtp {

struct Screen {
  const uint8_t* data;
  int64_t n, k;

  int64_t num_strips() const { return (n + kStripOutputs - 1) / kStripOutputs; }
};

// Of a strip.
constexpr int64_t screen_values_bytes(int64_t k) { return (k + 3) / 4 * 4 * kStripOutputs; }
constexpr int64_t screen_strip_bytes(int64_t k) {
  return screen_values_bytes(k) + 3 * kStripOutputs * static_cast<int64_t>(sizeof(float));
}

// Sums of a strip stay in 32 bits up to this.
constexpr int64_t kMaxScreenedInputs = 1 << 15;

// A row of x as the screen meets it.
struct ScreenedRow {
  float step;       // t
  float length;     // |x|, rounded up; NaN or infinity where x is not finite
  float error;      // |d|, rounded up
  int32_t sums[2];  // -128 times the digits' sums: weights have 128 too much
};

// p = 256 high + low, digits from -128 to 127.
struct Screening {
  Screen screen;
  const bf16* x;  // rows x_stride apart
  int64_t m, x_stride;
  const int64_t* rows;      // [m]: which row of x each is; null: its own
  const bf16* norm_weight;  // [k]
  float eps;
  bf16* normed;          // [m, k]: the rows' norms
  int8_t* digits;        // [m, 2, k up to a multiple of 4]: high, low
  ScreenedRow* numbers;  // [m]
  // [m, strips]: no output of a strip is more than `most`, and one is at least `least`.
  float *most, *least;
};

}  // namespace rtp

// make_screen: `out` has the layout's size.
// has_fast_screen: whether screening takes less time here than the product.
RTP_PER_ISA(void screen(const Screening& op, const Member& member);
            void make_screen(uint8_t* out, const PackedMatrix& weight, const Member& member);
            bool has_fast_screen();)
