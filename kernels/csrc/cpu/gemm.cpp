#include "gemm.h"

#include "activation_row.h"
#include "gemm_step.h"
#include "norm_row.h"
#include "scratch.h"

namespace rtp::RTP_ISA_NAMESPACE {
namespace {

constexpr int kTileOutputs = 2 * kLanes;
static_assert(kStripOutputs % kTileOutputs == 0);

// Rows of x that stay in the second-level cache while the weights pass by.
constexpr int64_t kBlockBytes = 384 << 10;

// How far ahead the only tile of a strip reads its weights.
constexpr int64_t kPrefetchBytes = 4096;

// So few rows take two strips at once: reading two streams is faster than one. The streams are the
// halves of a thread's strips, so that each reads on where its last strip ended.
constexpr int kFewRows = kTileRows / 2;

RTP_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
RTP_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
RTP_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Part `index` of `count` near-equal parts of [0, total) starts here and ends where the next does.
RTP_INLINE int64_t part(int64_t total, int64_t index, int64_t count) {
  return total * index / count;
}

// Some rows by kTileOutputs outputs of one strip, or of two, over all of k.
template <typename T>
struct Tile {
  const Operand<T>* x;
  int64_t x_stride;
  const T* weight;
  int64_t distance;  // from strip to strip, in strips
  int64_t strip_elements;
  int64_t k;
  const char* ahead;  // weights to fetch meanwhile
  int64_t ahead_step;
  const float* bias;  // null: none
  void* out;
  DType out_dtype;
  int64_t out_stride;
  const void* residual;  // null: none
  int64_t outputs;       // how many of them exist
};

RTP_INLINE VecF load_bias(const float* bias, int64_t count) {
  if (count >= kLanes) return load(bias);
  return load_first(bias, static_cast<int>(most(count, 0)));
}

template <typename Out>
RTP_INLINE void store_outputs(Out* out, const Out* residual, VecF sums, int64_t count) {
  if (count >= kLanes) {
    store(out, residual ? load(residual) + rounded<Out>(sums) : sums);
  } else if (count > 0) {
    const int lanes = static_cast<int>(count);
    store_first(out, residual ? load_first(residual, lanes) + rounded<Out>(sums) : sums, lanes);
  }
}

template <typename Out, int kRows, int kStrips, typename T>
RTP_INLINE void store_tile(const Tile<T>& tile, const Sums<kRows, kStrips>& sums) {
#pragma GCC unroll 4
  for (int i = 0; i < 2 * kStrips; ++i) {
    const int64_t column = i / 2 * tile.distance * kStripOutputs + i % 2 * kLanes;
    const int64_t count = tile.outputs - column;
    const VecF bias = tile.bias ? load_bias(tile.bias + column, count) : set1(0);
    Out* out = static_cast<Out*>(tile.out) + column;
    const Out* residual = tile.residual ? static_cast<const Out*>(tile.residual) + column : nullptr;
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      const VecF total = tile.bias ? sums[row][i] + bias : sums[row][i];
      const int64_t offset = row * tile.out_stride;
      store_outputs(out + offset, residual ? residual + offset : nullptr, total, count);
    }
  }
}

template <int kRows, int kStrips, typename T>
__attribute__((noinline)) void multiply(const Tile<T>& tile) {
  const Rows<Operand<T>> x(tile.x, tile.x_stride);
  const int64_t stream = tile.distance * tile.strip_elements;
  const T* weight = tile.weight;
  const char* ahead = tile.ahead;
  Sums<kRows, kStrips> sums;
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int i = 0; i < 2 * kStrips; ++i) sums[row][i] = set1(0);
  }
  for (int64_t k = 0; k < tile.k; k += kDepth<T>) {
#pragma GCC unroll 4
    for (int i = 0; i < 2 * kStrips; ++i) {
      __builtin_prefetch(ahead + i / 2 * stream * static_cast<int64_t>(sizeof(T)) + i % 2 * 64);
    }
    ahead += tile.ahead_step;
    step<kRows, kStrips>(sums, x, k, weight, stream);
    weight += kStripOutputs * kDepth<T>;
  }
  tile.out_dtype == DType::kBf16 ? store_tile<bf16, kRows, kStrips>(tile, sums)
                                 : store_tile<float, kRows, kStrips>(tile, sums);
}

template <int kRows, int kStrips, typename T>
void multiply_rows(const Tile<T>& tile, int64_t rows) {
  if (rows == kRows) {
    multiply<kRows, kStrips>(tile);
  } else if constexpr (kRows > 1) {
    multiply_rows<kRows - 1, kStrips>(tile, rows);
  }
}

// As operands, to the next whole register, so that an odd k ends in a zero.
template <typename T>
void copy_row(float* to, const T* from, int64_t k) {
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) store(to + i, load(from + i));
  if (i < k) store(to + i, load_first(from + i, static_cast<int>(k - i)));
}

void copy_row(bf16* to, const bf16* from, int64_t k) {
  __builtin_memcpy(to, from, k * sizeof(bf16));
}

template <typename T>
void prepare_row(const Linear& op, Operand<T>* to, const T* from) {
  const int64_t k = op.weight.k;
  switch (op.prologue) {
    case Prologue::kNone:
      copy_row(to, from, k);
      break;
    case Prologue::kRmsNorm:
      norm_row(to, from, static_cast<const T*>(op.norm_weight), k, op.eps);
      break;
    case Prologue::kSiluAndMul:
      gate_row<T>(to, from, from + k, k);
      break;
  }
  if (k % kDepth<T>) to[k] = Operand<T>{};
}

// The product as a grid of work: blocks of rows × strips of outputs, block by block.
template <typename T>
struct Grid {
  using X = Operand<T>;

  const Linear& op;
  int64_t strips;
  int64_t strip_elements;
  int64_t blocks;
  int64_t x_stride;  // of the copied rows; one cache line more than needed keeps them apart in sets

  Grid(const Linear& op_, int threads) : op(op_) {
    const int64_t k = op.weight.k;
    strips = ceil_div(op.weight.n, kStripOutputs);
    strip_elements = ceil_div(k, kDepth<T>) * kDepth<T> * kStripOutputs;
    x_stride = ceil_div(k, 16) * 16 + 64 / static_cast<int64_t>(sizeof(X));
    const int64_t cached_rows =
        most(2 * kTileRows, kBlockBytes / (x_stride * static_cast<int64_t>(sizeof(X))));
    const int64_t for_threads = least(ceil_div(op.m, kTileRows), ceil_div(8 * threads, strips));
    blocks = most(ceil_div(op.m, cached_rows), threads > 1 ? for_threads : 1);
  }

  const X* prepare_rows(int64_t first, int64_t last) const {
    X* rows = reinterpret_cast<X*>(
        thread_scratch((last - first) * x_stride * static_cast<int64_t>(sizeof(X)) / 4));
    for (int64_t row = first; row < last; ++row) {
      const T* source = static_cast<const T*>(op.x) + (op.rows ? op.rows[row] : row) * op.x_stride;
      prepare_row(op, rows + (row - first) * x_stride, source);
    }
    return rows;
  }

  // Rows [first, last) of strip `index`, or of that and the one `distance` on; `x` is the copy of
  // row `first`.
  template <int kStrips>
  void multiply_strips(int64_t index, int64_t distance, const X* x, int64_t first,
                       int64_t last) const {
    const T* weight = static_cast<const T*>(op.weight.data) + index * strip_elements;
    const int64_t rows = last - first, tiles = ceil_div(rows, kTileRows);
    Tile<T> tile;
    tile.x_stride = x_stride;
    tile.distance = distance;
    tile.strip_elements = strip_elements;
    tile.k = op.weight.k;
    tile.out_dtype = op.out_dtype;
    tile.out_stride = op.out_stride;
    tile.ahead_step = kStripOutputs * kDepth<T> * static_cast<int64_t>(sizeof(T)) / tiles;
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t row = part(rows, i, tiles);
      tile.x = x + row * x_stride;
      // Several tiles fetch the next strip between them; a single one fetches its own.
      const T* next = weight + strip_elements + part(strip_elements, i, tiles);
      tile.ahead = tiles > 1 ? reinterpret_cast<const char*>(next)
                             : reinterpret_cast<const char*>(weight) + kPrefetchBytes;
      for (int output = 0; output < kStripOutputs; output += kTileOutputs) {
        const int64_t column = index * kStripOutputs + output;
        if (column >= op.weight.n) break;
        tile.weight = weight + output * kDepth<T>;
        tile.bias = op.bias ? op.bias + column : nullptr;
        tile.outputs = op.weight.n - column;
        tile.out = static_cast<char*>(op.out) + offset(first + row, column);
        tile.residual = op.residual
                            ? static_cast<const char*>(op.residual) + offset(first + row, column)
                            : nullptr;
        multiply_rows<kTileRows / kStrips, kStrips>(tile, part(rows, i + 1, tiles) - row);
      }
    }
  }

  // In bytes, of an output.
  int64_t offset(int64_t row, int64_t column) const {
    const int64_t size = op.out_dtype == DType::kBf16 ? sizeof(bf16) : sizeof(float);
    return (row * op.out_stride + column) * size;
  }

  void run(const Member& member) const {
    PreparedRows prepared;
    // Few rows: a share's strips as halves that go side by side, so that each reads on where its
    // last strip ended, and perhaps one strip more.
    const bool has_few_rows = blocks == 1 && op.m <= kFewRows;
    const auto num_strips = [&](int share) {
      return member.end(blocks * strips, share) - member.begin(blocks * strips, share);
    };
    const auto num_units = [&](int share) {
      const int64_t count = has_few_rows ? (num_strips(share) + 1) / 2 : num_strips(share);
      return static_cast<int>(least(count, kMaxUnits));
    };
    const auto multiply_unit = [&](int share, int unit) {
      const int64_t begin = member.begin(blocks * strips, share), count = num_strips(share);
      const int units = num_units(share);
      if (!has_few_rows) {
        return multiply_run(begin + part(count, unit, units), begin + part(count, unit + 1, units),
                            prepared);
      }
      const int64_t half = (count + 1) / 2;
      prepare(0, prepared);
      for (int64_t i = part(half, unit, units); i < part(half, unit + 1, units); ++i) {
        if (half + i < count) {
          multiply_strips<2>(begin + i, half, prepared.rows, 0, op.m);
        } else {
          multiply_strips<1>(begin + i, 0, prepared.rows, 0, op.m);
        }
      }
    };
    member.each(num_units, op.is_repeatable() ? Repeats::kYes : Repeats::kNo, multiply_unit);
  }

 private:
  // The rows of one block as they meet the weights.
  struct PreparedRows {
    int64_t block = -1;
    const X* rows;
  };

  void prepare(int64_t block, PreparedRows& prepared) const {
    if (block == prepared.block) return;
    prepared = {block, prepare_rows(part(op.m, block, blocks), part(op.m, block + 1, blocks))};
  }

  // Strips [begin, end) of the grid.
  void multiply_run(int64_t begin, int64_t end, PreparedRows& prepared) const {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i / strips;
      prepare(block, prepared);
      multiply_strips<1>(i % strips, 0, prepared.rows, part(op.m, block, blocks),
                         part(op.m, block + 1, blocks));
    }
  }
};

}  // namespace

void linear(const Linear& op, const Member& member) {
  if (op.m == 0) return;
  if (op.weight.dtype == DType::kBf16) {
    Grid<bf16>(op, member.size()).run(member);
  } else {
    Grid<float>(op, member.size()).run(member);
  }
}

}  // namespace rtp::RTP_ISA_NAMESPACE
