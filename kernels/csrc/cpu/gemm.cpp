#include "gemm.h"

#include "activation_row.h"
#include "gemm_rows.h"
#include "norm_row.h"
#include "scratch.h"

namespace rtp::RTP_ISA_NAMESPACE {
namespace {

// Part `index` of `count` near-equal parts of [0, total) starts here and ends where the next does.
RTP_INLINE int64_t part(int64_t total, int64_t index, int64_t count) {
  return total * index / count;
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
  end_row<T>(to, k);
}

// The product as a grid of work: blocks of rows × strips of outputs, block by block.
template <typename T>
struct Grid {
  using X = Operand<T>;
  static constexpr bool kIsBf16 = sizeof(T) == sizeof(bf16);

  const Linear& op;
  int64_t strips;
  int64_t strip_elements;
  int64_t blocks;
  int64_t x_stride;  // of the copied rows

  Grid(const Linear& op_, int threads) : op(op_) {
    const int64_t k = op.weight.k;
    strips = ceil_div(num_outputs(), kStripOutputs);
    strip_elements = strip_size<T>(k);
    x_stride = operand_stride<T>(k);
    const int64_t cached_rows = block_rows<T>(k);
    const int64_t for_threads = least(ceil_div(op.m, kTileRows<T>), ceil_div(8 * threads, strips));
    blocks = most(ceil_div(op.m, cached_rows), threads > 1 ? for_threads : 1);
  }

  // Columns of `out`.
  int64_t num_outputs() const {
    return op.epilogue == Epilogue::kSiluAndMul ? op.weight.n / 2 : op.weight.n;
  }

  // Rows [first, last) as they meet the weights.
  struct Block {
    int64_t index = -1, first, last;
    X* rows;      // x_stride apart
    float* sums;  // of as many rows of a strip, under AMX
    T* plain;     // strips that are coded elsewhere
  };

  // Of strip `index`, or of that and the one `distance` on.
  template <int kStrips>
  void multiply_strips(int64_t index, int64_t distance, const Block& block) const {
    if (op.epilogue == Epilogue::kSiluAndMul) return multiply_gate(index, block);
    const Tile<T> tile = tile_of(index, distance, block);
    const int64_t rows = block.last - block.first;
    if constexpr (kIsBf16) {
      if (tile.coded) return multiply_coded_whole<kStrips>(tile, rows, block.sums, block.plain);
    }
    multiply_whole<kStrips>(tile, rows, block.sums);
  }

  // Strip `index`, its outputs in the columns that they are of.
  Tile<T> tile_of(int64_t index, int64_t distance, const Block& block) const {
    const int64_t column = index * kStripOutputs;
    Tile<T> tile;
    tile.x = block.rows;
    tile.x_stride = x_stride;
    tile.distance = distance;
    tile.apart = distance * kStripOutputs;
    tile.strip_elements = strip_elements;
    tile.k = op.weight.k;
    tile.jump = 0;
    const char* strip = strip_of(op.weight, index);
    tile.weight = reinterpret_cast<const T*>(strip);
    if (op.weight.escapes) {
      tile.coded = strip;
      tile.escapes = op.weight.escapes;
      tile.coded_bytes = strip_bytes(op.weight);
    }
    tile.bias = op.bias ? op.bias + column : nullptr;
    tile.outputs = op.weight.n - column;
    tile.out = static_cast<char*>(op.out) + offset(block.first, column);
    tile.out_dtype = op.out_dtype;
    tile.out_stride = op.out_stride;
    tile.residual =
        op.residual ? static_cast<const char*>(op.residual) + offset(block.first, column) : nullptr;
    return tile;
  }

  void multiply_gate(int64_t index, const Block& block) const {
    if constexpr (kUsesTileRegisters<T>) {
      const Tile<T> gate = tile_of(index, 0, block), up = tile_of(strips + index, 0, block);
      const int64_t rows = block.last - block.first;
      if (!gate.coded) return multiply_gated(gate, up, rows, block.sums);
      multiply_gated(expanded(gate, block.plain),
                     expanded(up, block.plain + expanded_elements(op.weight.k)), rows, block.sums);
    } else {
      __builtin_unreachable();  // has_gate() says no
    }
  }

  // In bytes, of an output.
  int64_t offset(int64_t row, int64_t column) const {
    const int64_t size = op.out_dtype == DType::kBf16 ? sizeof(bf16) : sizeof(float);
    return (row * op.out_stride + column) * size;
  }

  bool takes_two_streams() const { return blocks == 1 && op.m <= kFewRows<T>; }

  Ahead first_weights(const Member& member) const {
    if (!takes_two_streams()) return {};
    const int64_t begin = member.begin(strips, member.index());
    const int64_t half = (member.end(strips, member.index()) - begin + 1) / 2;
    const int64_t half_bytes = half * strip_bytes(op.weight);
    const char* first = strip_of(op.weight, begin);
    return {{first, first + half_bytes}, half_bytes};
  }

  void run(const Member& member) const {
    Block block;
    // Few rows: a share's strips as halves that go side by side, so that each reads on where its
    // last strip ended, and perhaps one strip more.
    const bool has_few_rows = takes_two_streams();
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
                            block);
      }
      const int64_t half = (count + 1) / 2;
      prepare(0, block);
      for (int64_t i = part(half, unit, units); i < part(half, unit + 1, units); ++i) {
        if (half + i < count) {
          multiply_strips<2>(begin + i, half, block);
        } else {
          multiply_strips<1>(begin + i, 0, block);
        }
      }
    };
    member.each(num_units, op.is_repeatable() ? Repeats::kYes : Repeats::kNo, multiply_unit);
  }

 private:
  // As part(), at whole grains.
  static int64_t rows_part(int64_t rows, int64_t index, int64_t count) {
    constexpr int64_t kGrain = kRowGrain<T>;
    return least(rows, part(ceil_div(rows, kGrain), index, count) * kGrain);
  }

  void prepare(int64_t index, Block& block) const {
    if (index == block.index) return;
    block.index = index;
    block.first = rows_part(op.m, index, blocks);
    block.last = rows_part(op.m, index + 1, blocks);
    const int64_t rows = ceil_div(block.last - block.first, kTileRows<T>) * kTileRows<T>;
    Pieces needed(nullptr);
    take(needed, rows, block);
    Pieces pieces(thread_scratch(needed.floats()));
    take(pieces, rows, block);
    for (int64_t row = block.first; row < block.last; ++row) {
      const T* source = static_cast<const T*>(op.x) + (op.rows ? op.rows[row] : row) * op.x_stride;
      prepare_row(op, block.rows + (row - block.first) * x_stride, source);
    }
  }

  void take(Pieces& pieces, int64_t rows, Block& block) const {
    pieces.take(block.rows, rows * x_stride);
    const int64_t strips_at_once = op.epilogue == Epilogue::kSiluAndMul ? 2 : 1;
    pieces.take(block.sums, kUsesTileRegisters<T> ? strips_at_once * rows * kStripOutputs : 0);
    pieces.take(block.plain,
                op.weight.escapes ? strips_at_once * expanded_elements(op.weight.k) : 0);
  }

  // Strips [begin, end) of the grid.
  void multiply_run(int64_t begin, int64_t end, Block& block) const {
    for (int64_t i = begin; i < end; ++i) {
      prepare(i / strips, block);
      multiply_strips<1>(i % strips, 0, block);
    }
  }
};

}  // namespace

void linear(const Linear& op, const Member& member) {
  if (op.m == 0) return;
  if (op.weight.dtype == DType::kBf16) {
#if defined(RTP_HAS_AMX)
    const TileRegisters registers;
#endif
    Grid<bf16>(op, member.size()).run(member);
  } else {
    Grid<float>(op, member.size()).run(member);
  }
}

bool has_gate(const Linear& op) {
  return kUsesTileRegisters<bf16> && op.weight.dtype == DType::kBf16 && op.m > kFewRows<bf16> &&
         op.weight.n % (2 * kStripOutputs) == 0 && op.out_dtype == DType::kBf16 && !op.residual;
}

Ahead first_weights(const Linear& op, const Member& member) {
  return op.weight.dtype == DType::kBf16 ? Grid<bf16>(op, member.size()).first_weights(member)
                                         : Grid<float>(op, member.size()).first_weights(member);
}

}  // namespace rtp::RTP_ISA_NAMESPACE
