#include "experts.h"

#include "activation_row.h"
#include "gemm_rows.h"
#include "route.h"
#include "scratch.h"

namespace rtp::RTP_ISA_NAMESPACE {
namespace {

// Rows whose products take as long as bringing the weights.
#if defined(RTP_HAS_AMX)
constexpr int64_t kWeightRows = 64;
#else
constexpr int64_t kWeightRows = 8;
#endif

// Of a unit.
constexpr int64_t kLeastStrips = 4;

// Sums of a unit's columns over all rows stay in the second-level cache, more or less.
constexpr int64_t kSumBytes = 2 << 20;

// An expert that has rows.
struct Run {
  const ExpertPass* pass;
  int64_t expert, first, rows;  // pairs [first, first + rows)
  int64_t start, strip_cost;    // cost before it, and of each of its strips of hidden columns
};

// All of them, in the order of the sums.
class Runs {
 public:
  explicit Runs(const Experts& op) {
    for (int p = 0; p < op.num_passes; ++p) {
      const ExpertPass& pass = op.passes[p];
      for (int64_t expert = 0; expert < pass.stack.count; ++expert) {
        const int64_t first = pass.groups.starts[expert];
        const int64_t rows = pass.groups.starts[expert + 1] - first;
        if (!rows) continue;
        const int64_t strips = pass.stack.inner_size / kStripOutputs;
        runs_[count_++] = {&pass, expert, first, rows, cost_, kWeightRows + rows};
        cost_ += strips * (kWeightRows + rows);
        strips_ += strips;
        largest_ = most(largest_, rows);
      }
    }
  }

  int64_t cost() const { return cost_; }
  int64_t strips() const { return strips_; }
  int64_t largest() const { return largest_; }
  const Run* begin() const { return runs_; }
  const Run* end() const { return runs_ + count_; }

 private:
  Run runs_[kMaxExperts + 1];
  int64_t count_ = 0, cost_ = 0, strips_ = 0, largest_ = 0;
};

// Bytes from the end of a strip of packed weights to a strip of the same or of others.
template <typename T>
RTP_INLINE int64_t jump_to(const PackedMatrix& weight, int64_t strip, const T* end) {
  const T* next = static_cast<const T*>(weight.data) + strip * strip_size<T>(weight.k);
  return (next - end) * static_cast<int64_t>(sizeof(T));
}

// Rows on their way to a run's weights, and what comes of them.
template <typename T>
struct Block {
  Operand<T>* x;  // up to whole tiles, operand_stride apart
  float* sums;    // of as many rows of two strips, under AMX
  int64_t capacity;

  // A place for `rows` of depth k at most.
  void take(Pieces& pieces, int64_t rows, int64_t k) {
    capacity = ceil_div(least(rows, block_rows<T>(k)), kTileRows<T>) * kTileRows<T>;
    pieces.take(x, capacity * operand_stride<T>(k));
    pieces.take(sums, kUsesTileRegisters<T> ? 2 * capacity * kStripOutputs : 0);
  }
};

template <typename T>
Tile<T> tile_of(const Block<T>& block, const PackedMatrix& weight, int64_t strip) {
  Tile<T> tile{};
  tile.x = block.x;
  tile.x_stride = operand_stride<T>(weight.k);
  tile.strip_elements = strip_size<T>(weight.k);
  tile.k = weight.k;
  tile.weight = static_cast<const T*>(weight.data) + strip * tile.strip_elements;
  tile.outputs = 2 * kStripOutputs;  // all exist
  return tile;
}

template <typename T>
constexpr DType kTypeOf = sizeof(T) == sizeof(bf16) ? DType::kBf16 : DType::kF32;

// Hidden columns of runs, by units of equal cost.
template <typename T>
struct Gates {
  const Experts& op;
  const Runs& runs;

  void run(const Member& member) const {
    // Some strips one behind the other, or what is fetched ahead is another unit's.
    const int64_t per_share = ceil_div(runs.strips(), kLeastStrips * member.size());
    const int units = static_cast<int>(least(per_share, kMaxUnits));
    member.each([&](int) { return units; }, Repeats::kYes,
                [&](int share, int unit) {
                  const int64_t index = share * units + unit, count = member.size() * units;
                  run_costs(runs.cost() * index / count, runs.cost() * (index + 1) / count);
                });
  }

 private:
  struct Place {
    Block<T> block;
    T* gate_up;  // [capacity, 2 strips]

    void take(Pieces& pieces, int64_t rows, int64_t k) {
      block.take(pieces, rows, k);
      pieces.take(gate_up, block.capacity * 2 * kStripOutputs);
    }
  };

  // The strips that begin at a cost in [begin, end).
  void run_costs(int64_t begin, int64_t end) const {
    Place place = {};
    const int64_t k = op.passes[0].stack.hidden_size;
    Pieces needed(nullptr);
    place.take(needed, runs.largest(), k);
    Pieces pieces(thread_scratch(needed.floats()));
    place.take(pieces, runs.largest(), k);
    for (const Run& each : runs) {
      const int64_t strips = each.pass->stack.inner_size / kStripOutputs;
      const auto strip_at = [&](int64_t cost) {
        return least(strips, ceil_div(most(0, cost - each.start), each.strip_cost));
      };
      const int64_t first = strip_at(begin), last = strip_at(end);
      if (first < last) run_strips(each, first, last, place);
      if (each.start >= end) break;
    }
  }

  void run_strips(const Run& each, int64_t first, int64_t last, const Place& place) const {
    for (int64_t row = 0; row < each.rows; row += place.block.capacity) {
      const int64_t rows = least(place.block.capacity, each.rows - row);
      gather(each.pass->groups.rows + each.first + row, rows, place.block);
      for (int64_t strip = first; strip < last; ++strip) {
        multiply(each, strip, each.first + row, rows, place, strip + 1 == last);
      }
    }
  }

  void gather(const int32_t* rows, int64_t count, const Block<T>& block) const {
    const int64_t k = op.passes[0].stack.hidden_size;
    for (int64_t i = 0; i < count; ++i) {
      Operand<T>* to = block.x + i * operand_stride<T>(k);
      copy_row(to, static_cast<const T*>(op.x) + rows[i] * k, k);
      end_row<T>(to, k);
    }
  }

  // Hidden columns of `strip` for the pairs from `pair` on.
  void multiply(const Run& each, int64_t strip, int64_t pair, int64_t rows, const Place& place,
                bool is_last) const {
    const ExpertPass& pass = *each.pass;
    const int64_t strips = pass.stack.inner_size / kStripOutputs;
    const int64_t gate_strip = each.expert * 2 * strips + strip;
    const int64_t stride = hidden_stride(pass.stack.inner_size);
    T* hidden = static_cast<T*>(pass.hidden) + pair * stride + strip * kStripOutputs;
    Tile<T> gate = tile_of(place.block, pass.stack.gate_up, gate_strip);
    Tile<T> up = tile_of(place.block, pass.stack.gate_up, gate_strip + strips);
    gate.out_dtype = up.out_dtype = kTypeOf<T>;
    if constexpr (kUsesTileRegisters<T>) {
      if (rows > kFewRows<T>) {
        gate.out = up.out = hidden;
        gate.out_stride = up.out_stride = stride;
        return multiply_gated(gate, up, rows, place.block.sums);
      }
    }
    gate.out_stride = up.out_stride = 2 * kStripOutputs;
    gate.out = place.gate_up;
    up.out = place.gate_up + kStripOutputs;
    if (rows <= kFewRows<T>) {
      if (const Run* next = &each + 1; is_last && next != runs.end() && next->pass == each.pass) {
        const int64_t next_strip = next->expert * 2 * strips;
        gate.jump = jump_to<T>(pass.stack.gate_up, next_strip, gate.weight + gate.strip_elements);
      }
      gate.distance = strips;
      gate.apart = kStripOutputs;
      multiply_whole<2>(gate, rows, place.block.sums);
    } else {
      multiply_whole<1>(gate, rows, place.block.sums);
      multiply_whole<1>(up, rows, place.block.sums);
    }
    for (int64_t row = 0; row < rows; ++row) {
      const T* pair_row = place.gate_up + row * 2 * kStripOutputs;
      gate_row<T>(hidden + row * stride, pair_row, pair_row + kStripOutputs, kStripOutputs);
    }
  }
};

// Columns of the output: a unit has some of them, of all experts.
template <typename T>
struct Outputs {
  const Experts& op;
  const Runs& runs;
  int64_t hidden_size = op.passes[0].stack.hidden_size;
  int64_t strips = hidden_size / kStripOutputs;

  void run(const Member& member) const {
    // Long runs of weights: for many rows as long as sums allow, for few as long as leaves units
    // for whoever is free.
    const int64_t row_bytes = kStripOutputs * static_cast<int64_t>(sizeof(float));
    const int64_t fitting = most(1, kSumBytes / (op.n * row_bytes));
    const int64_t wanted = most(4, ceil_div(strips, 2 * member.size()));
    member.split(strips, least(fitting, wanted), Repeats::kYes,
                 [&](int64_t begin, int64_t end) { run_strips(begin, end); });
  }

 private:
  struct Place {
    Block<T> block;
    float* outputs;  // [capacity, columns]: of a block
    float* total;    // [n, columns]

    void take(Pieces& pieces, const Runs& runs, int64_t k, int64_t n, int64_t columns) {
      block.take(pieces, runs.largest(), k);
      pieces.take(outputs, block.capacity * columns);
      pieces.take(total, n * columns);
    }
  };

  void run_strips(int64_t begin, int64_t end) const {
    const int64_t columns = (end - begin) * kStripOutputs;
    int64_t k = 0;
    for (int p = 0; p < op.num_passes; ++p) k = most(k, op.passes[p].stack.inner_size);
    Place place = {};
    Pieces needed(nullptr);
    place.take(needed, runs, k, op.n, columns);
    Pieces pieces(thread_scratch(needed.floats()));
    place.take(pieces, runs, k, op.n, columns);
    for (int64_t i = 0; i < op.n * columns; i += kLanes) store(place.total + i, set1(0));
    for (const Run& each : runs) {
      for (int64_t row = 0; row < each.rows; row += place.block.capacity) {
        const int64_t rows = least(place.block.capacity, each.rows - row);
        copy(each, row, rows, place.block);
        multiply(each, begin, end, rows, place);
        add(each, row, rows, columns, place);
      }
    }
    store_total(begin * kStripOutputs, columns, place);
  }

  void copy(const Run& each, int64_t first, int64_t rows, const Block<T>& block) const {
    const int64_t k = each.pass->stack.inner_size, stride = hidden_stride(k);
    const T* from = static_cast<const T*>(each.pass->hidden) + (each.first + first) * stride;
    for (int64_t row = 0; row < rows; ++row) {
      Operand<T>* to = block.x + row * operand_stride<T>(k);
      copy_row(to, from + row * stride, k);
      end_row<T>(to, k);
    }
  }

  void multiply(const Run& each, int64_t begin, int64_t end, int64_t rows,
                const Place& place) const {
    const int64_t count = end - begin;
    const bool has_few_rows = rows <= kFewRows<T>;
    const int64_t half = has_few_rows ? (count + 1) / 2 : count;
    for (int64_t i = 0; i < half; ++i) {
      Tile<T> tile = tile_of(place.block, each.pass->stack.down, each.expert * strips + begin + i);
      tile.out = place.outputs + i * kStripOutputs;
      tile.out_dtype = DType::kF32;
      tile.out_stride = count * kStripOutputs;
      if (has_few_rows && half + i < count) {
        tile.distance = half;
        tile.apart = half * kStripOutputs;
        tile.outputs = (half + 1) * kStripOutputs;
        if (const Run* next = &each + 1; i + 1 == half && next != runs.end()) {
          tile.jump = jump_to<T>(next->pass->stack.down, next->expert * strips + begin,
                                 tile.weight + tile.strip_elements);
        }
        multiply_whole<2>(tile, rows, place.block.sums);
      } else {
        multiply_whole<1>(tile, rows, place.block.sums);
      }
    }
  }

  // A block's outputs, weighted, to the rows they are of.
  void add(const Run& each, int64_t first, int64_t rows, int64_t columns,
           const Place& place) const {
    const ExpertGroups& groups = each.pass->groups;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t pair = each.first + first + row;
      const VecF weight = set1(groups.weights[pair]);
      const float* outputs = place.outputs + row * columns;
      float* total = place.total + groups.rows[pair] * columns;
      for (int64_t i = 0; i < columns; i += kLanes) {
        const VecF value = load(outputs + i);
        store(total + i,
              load(total + i) + weight * (each.pass->is_rounded ? rounded<T>(value) : value));
      }
    }
  }

  void store_total(int64_t column, int64_t columns, const Place& place) const {
    for (int64_t row = 0; row < op.n; ++row) {
      const int64_t offset = row * hidden_size + column;
      const float* total = place.total + row * columns;
      for (int64_t i = 0; i < columns; i += kLanes) {
        if (op.residual) {
          const T* residual = static_cast<const T*>(op.residual) + offset;
          store(static_cast<T*>(op.out) + offset + i, load(residual + i) + load(total + i));
        } else {
          store(static_cast<float*>(op.out) + offset + i, load(total + i));
        }
      }
    }
  }
};

template <template <typename> typename Phase>
void run(const Experts& op, const Member& member) {
  const Runs runs(op);
  if (op.passes[0].stack.down.dtype == DType::kBf16) {
#if defined(RTP_HAS_AMX)
    const TileRegisters registers;
#endif
    Phase<bf16>{op, runs}.run(member);
  } else {
    Phase<float>{op, runs}.run(member);
  }
}

}  // namespace

void gate_experts(const Experts& op, const Member& member) { run<Gates>(op, member); }

void sum_experts(const Experts& op, const Member& member) {
  if (op.n) run<Outputs>(op, member);
}

}  // namespace rtp::RTP_ISA_NAMESPACE
