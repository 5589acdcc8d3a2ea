// Linear layers over packed weights: out = x · weightᵀ + bias, exact for every batch.
//
// An output is one accumulator that takes its products in ascending order of k (AMX: 32 of them at
// once, in an order of its own), whatever the number of rows, the thread and the place in a tile:
// it has the same bits in every batch.
//
// Packed layout, the same at every instruction set: strips of kStripOutputs weight rows, each strip
// contiguous and read from end to end. In a strip k ascends, and beside it lie the strip's outputs:
//   bf16   [ceil(n / 32)][ceil(k / 2)][32][2]    pairs of k, as VDPBF16PS takes them
//   f32    [ceil(n / 32)][k][32]
// What is beyond n or k is zero. A bf16 weight may be coded instead, in three quarters of the
// memory: coded_strip.h.
#pragma once

#include "isa.h"
#include "team.h"
#include "types.h"

namespace rtp {

constexpr int kStripOutputs = 32;

struct PackedMatrix {
  DType dtype;
  const void* data;
  int64_t n, k;                   // outputs, inputs
  const bf16* escapes = nullptr;  // of strips that are coded (coded_strip.h); null: they are plain
};

// What becomes of a row of x before it meets the weights. It is rounded to x's type, so that the
// same in two steps gives the same bits.
enum class Prologue { kNone, kRmsNorm, kSiluAndMul };

// What becomes of the sums: kSiluAndMul makes one output of two, silu of output i of the first half
// times output i of the second, each rounded to x's type before. The same bits as those of storing
// all of them and of Prologue::kSiluAndMul afterwards.
enum class Epilogue { kNone, kSiluAndMul };

struct Projection {
  PackedMatrix weight;
  const float* bias;  // [n] or null
};

struct Linear {
  PackedMatrix weight;
  const float* bias;  // [n] or null
  const void* x;      // [m, k], or [m, 2 k] under Prologue::kSiluAndMul; the weight's type
  void* out;          // [m, n], or [m, n / 2] under Epilogue::kSiluAndMul
  DType out_dtype;    // the weight's, or f32: the sums as they are
  int64_t m;
  int64_t x_stride, out_stride;
  const int64_t* rows = nullptr;  // [m]: which row of x each row of `out` is of; null: its own
  Prologue prologue = Prologue::kNone;
  const void* norm_weight = nullptr;  // [k], under kRmsNorm
  float eps = 0;
  // [m, n], rows out_stride apart, of out's type: the result, rounded to it, is added. Null: none.
  const void* residual = nullptr;
  Epilogue epilogue = Epilogue::kNone;

  // A sum in place is not.
  bool is_repeatable() const { return residual != out; }
};

}  // namespace rtp

// has_gate: whether linear() takes Epilogue::kSiluAndMul for an op that is otherwise the same.
// first_weights: those that a member reads first, where rows are few enough for memory to matter.
RTP_PER_ISA(void linear(const Linear& op, const Member& member); bool has_gate(const Linear& op);
            Ahead first_weights(const Linear& op, const Member& member);)
