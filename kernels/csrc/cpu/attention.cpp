#include "attention.h"

#include "attention_block.h"
#include "attention_query.h"
#include "attention_tile.h"
#if defined(RTP_HAS_AMX)
#include "attention_amx.h"
#endif

namespace rtp::RTP_ISA_NAMESPACE {
namespace {

// More rows than this are worth a copy of the tile where that is widened.
constexpr int32_t kFewRows = 8 * kBlockRows;

// What products read the cache with, and copies of its tiles.
template <typename Element_, typename Units_, typename Copied_>
struct Arithmetic {
  using Element = Element_;
  using Units = Units_;
  using Copied = Copied_;
};

// One thread's passage over a query tile's keys.
template <typename A>
class TileRun {
  using Element = typename A::Element;
  using Units = typename A::Units;
  using Copied = typename A::Copied;
  using Weight = typename Units::Weight;

  // Elements of a query in a word.
  static constexpr int kQueryElements = Units::kElements / Units::kOperands;

 public:
  TileRun(const PagedAttention& op, const QueryTile& tile)
      : query_(op, tile),
        step_(op.geometry),
        tile_(tile),
        group_(query_.group),
        rows_(query_.rows),
        columns_(query_.columns),
        context_(query_.context),
        source_(op, tile.seq, tile.kv_head),
        memory_{group_,  step_.head_dim, columns_, op.scale * kLog2E,
                nullptr, nullptr,        nullptr,  nullptr} {
    last_key_ = context_ + (query_.has_tree ? 0 : tile.first_token + tile.num_tokens);
  }

  static void merge(const PagedAttention& op, const QueryTile& tile) {
    TileQuery<Element>(op, tile).merge();
  }

  void attend(const Span& span) {
    allocate();
    load_queries();
    for (int32_t p = span.partition_begin; p < span.partition_end; ++p) attend_partition(p);
    if (query_.partials) return;
    for (int32_t row = 0; row < rows_; ++row) total(row).write(query_.out(row), step_.head_dim);
  }

 private:
  PartialRow total(int32_t row) const {
    return {totals_ + row * partial_floats(step_.head_dim), columns_};
  }

  void allocate() {
    Pieces needed(nullptr);
    take(needed);
    Pieces pieces(thread_scratch(needed.floats()));
    take(pieces);
    copies_ = source_.copies_in(copied_keys_, copied_values_);
  }

  void take(Pieces& pieces) {
    constexpr int64_t kBlock = kBlockRows * kTileKeys;
    pieces.take(copied_keys_, source_.copied_words());
    pieces.take(copied_values_, source_.copied_words());
    for (float*& scores : scores_) pieces.take(scores, kBlock);
    for (Weight*& weights : weights_) pieces.take(weights, kBlock);
    pieces.take(memory_.queries, rows_ * columns_);
    pieces.take(memory_.accumulators, rows_ * columns_);
    pieces.take(totals_, rows_ * partial_floats(step_.head_dim));
    pieces.take(memory_.states, rows_);
    pieces.take(memory_.ranges, tile_.num_tokens);
  }

  void load_queries() {
    for (int32_t token = 0; token < tile_.num_tokens; ++token)
      memory_.ranges[token] = query_.range_of(token);
    const int64_t words = step_.head_dim / kQueryElements;
    for (int32_t row = 0; row < rows_; ++row) {
      const Element* query = query_.query(row);
      float* target = memory_.queries + row * columns_;
      for (int64_t i = 0; i < words; i += kLanes) {
        const int count = static_cast<int>(words - i < kLanes ? words - i : kLanes);
        if constexpr (kQueryElements == 1) {
          store(target + i, count == kLanes ? load(query + i) : load_first(query + i, count));
        } else {
          store(target + i, load_words(query + i * kQueryElements, count));
        }
      }
    }
  }

  void attend_partition(int32_t partition) {
    const int32_t first = partition * kPartitionKeys;
    for (int32_t row = 0; row < rows_; ++row) {
      memory_.states[row].reset();
      float* accumulators = memory_.accumulators + row * columns_;
      for (int64_t c = 0; c < columns_; c += kLanes) store(accumulators + c, set1(0.0f));
    }
    for (int32_t key = first; key < first + kPartitionKeys; key += kTileKeys) {
      if (query_.has_tree && key + kTileKeys > context_) {
        attend_tree_tile(key);
      } else {
        attend_tile(key);
      }
    }
    for (int32_t row = 0; row < rows_; ++row) {
      if (!memory_.ranges[row / group_].within(first, kPartitionKeys).is_empty())
        finish(partition, row);
    }
  }

  void finish(int32_t partition, int32_t row) const {
    const float* accumulators = memory_.accumulators + row * columns_;
    const float maximum = memory_.states[row].maximum, sum = memory_.states[row].sum();
    if (query_.partials) return query_.partial(partition, row).assign(accumulators, maximum, sum);
    if (memory_.ranges[row / group_].begin / kPartitionKeys == partition) {
      return total(row).assign(accumulators, maximum, sum);
    }
    total(row).merge(accumulators, maximum, sum);
  }

  // Keys of one tile, and rows of which at least the first and the last see some of them.
  struct Part {
    int32_t first;       // key
    KeyRange seen;       // by any row, counted from `first`
    int32_t begin, end;  // rows

    bool is_empty() const { return begin >= end; }
  };

  // Of the rows of tokens [token, token + count).
  Part part_of(int32_t first, int32_t token, int32_t count) const {
    Part part{first, {kTileKeys, 0}, rows_, 0};
    for (int32_t t = token; t < token + count; ++t) {
      const KeyRange range = memory_.ranges[t].within(first, kTileKeys);
      if (range.is_empty()) continue;
      part.seen = part.seen.joined(range);
      part.begin = t * group_ < part.begin ? t * group_ : part.begin;
      part.end = (t + 1) * group_;
    }
    return part;
  }

  void attend_tile(int32_t first) {
    const Part part = part_of(first, 0, tile_.num_tokens);
    if (part.is_empty()) return;
    const KeyRange blocks = blocks_of(part.seen);
    TileWords tile, next;
    source_.find(first, blocks.begin, blocks.end, tile);
    const bool has_next = find_next(first + kTileKeys, next);
    if (columns_ != step_.head_dim || (source_.kIsWidened && part.end - part.begin > kFewRows)) {
      source_.copy(tile, blocks.begin, blocks.end, copies_);
      attend_rows<Copied>(part, copies_, has_next ? &next : nullptr);
    } else {
      attend_rows<Units>(part, tile, has_next ? &next : nullptr);
    }
  }

  // The tile at key `first`, if it is worth asking for in advance.
  bool find_next(int32_t first, TileWords& next) const {
    if (first >= last_key_) return false;
    const int32_t keys = last_key_ - first;
    const int32_t blocks = (keys + kBlockTokens - 1) / kBlockTokens;
    source_.find(first, 0, blocks < kTileBlocks ? blocks : kTileBlocks, next);
    return true;
  }

  // A tile with tokens of this step, of which each sees its own selection.
  void attend_tree_tile(int32_t first) {
    const Part all = part_of(first, 0, tile_.num_tokens);
    if (all.is_empty()) return;
    const KeyRange before = KeyRange{first + all.seen.begin, context_}.within(first, kTileKeys);
    if (!before.is_empty()) {
      const KeyRange blocks = blocks_of(before);
      TileWords tile;
      source_.find(first, blocks.begin, blocks.end, tile);
      source_.copy(tile, blocks.begin, blocks.end, copies_);
    }
    for (int32_t token = 0; token < tile_.num_tokens; ++token) {
      const Part part = part_of(first, token, 1);
      if (part.is_empty()) continue;
      copy_ancestors(token, part);
      attend_rows<Copied>(part, copies_, nullptr);
    }
  }

  // The i-th token of this step that `token` sees is the key of index context + i.
  void copy_ancestors(int32_t token, const Part& part) const {
    query_.each_ancestor(token, [&](int32_t index, int32_t ancestor) {
      const int32_t key = index - part.first;
      if (key < part.seen.begin || key >= part.seen.end) return;
      source_.copy_token(context_ + ancestor, key, copies_);
    });
  }

  // The rows of `part`, in blocks. Fetches `next`, if any, meanwhile.
  //
  // A block's scores are there one block before its values are added, so that no product waits for
  // weights and no weights wait for a product.
  template <typename TileUnits>
  void attend_rows(const Part& part, const TileWords& tile, const TileWords* next) {
    const int32_t rows = part.end - part.begin;
    const int32_t count = (rows + kBlockRows - 1) / kBlockRows;
    const auto row_of = [&](int32_t block) { return part.begin + rows * block / count; };
    RowBlock<TileUnits> blocks[2];
    for (int32_t i = 0; i <= count; ++i) {
      RowBlock<TileUnits>& block = blocks[i % 2];
      if (i < count) {
        if (!TileUnits::kReadsAhead && next) source_.fetch(*next, i, count);
        block.take(memory_, part.first, row_of(i), row_of(i + 1), scores_[i % 2], weights_[i % 2]);
        block.score(tile, next && i == 0 ? *next : tile);
      }
      if (i > 0) blocks[(i - 1) % 2].add_values(tile, next && i == 1 ? *next : tile);
      if (i < count) block.weigh();
    }
  }

  const TileQuery<Element> query_;
  const AttentionGeometry& step_;
  const QueryTile& tile_;
  const int32_t group_, rows_;
  const int64_t columns_;
  const int32_t context_;
  const TileSource<Units, Copied> source_;
  int32_t last_key_;  // of those worth asking for in advance

  TileRows memory_;
  TileWords copies_;
  float *copied_keys_, *copied_values_, *scores_[2], *totals_;
  Weight* weights_[2];
};

// Rows beyond the last sequence are padding: zero, so that nothing undefined goes on.
void clear_padding(const PagedAttention& op) {
  const AttentionGeometry& step = op.geometry;
  const int64_t used = step.query_start_loc[step.num_seqs];
  const int64_t row_bytes = step.num_heads * step.head_dim * 4 / word_elements(op.dtype);
  __builtin_memset(static_cast<char*>(op.out) + used * row_bytes, 0,
                   (op.num_tokens - used) * row_bytes);
}

// Spans are dealt to shares in turn, as those that follow each other cost about the same.
template <typename Run>
void attend_spans(const PagedAttention& op, const AttentionWork& work, const Member& member) {
  const auto num_spans = [&](int share) {
    return (work.num_spans - share + member.size() - 1) / member.size();
  };
  const auto num_units = [&](int share) {
    return num_spans(share) < kMaxUnits ? num_spans(share) : kMaxUnits;
  };
  member.each(num_units, Repeats::kYes, [&](int share, int unit) {
    const int count = num_spans(share), units = num_units(share);
    for (int i = count * unit / units; i < count * (unit + 1) / units; ++i) {
      const int32_t index = share + i * member.size();
      const Span& span = work.spans[index];
      if (index == 0) clear_padding(op);
      Run(op, work.tiles[span.tile]).attend(span);
    }
  });
}

template <typename Run>
void run(const PagedAttention& op, const AttentionWork& work, const Member& member) {
  if (work.num_spans == 0)
    return member.each([](int) { return 1; }, Repeats::kYes, [&](int, int) { clear_padding(op); });
  attend_spans<Run>(op, work, member);
  if (work.num_cut_tiles == 0) return;
  member.split(work.num_cut_tiles, 1, Repeats::kYes, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      Run::merge(op, work.tiles[work.cut_tiles[i]]);
    }
  });
}

}  // namespace

void attend(const PagedAttention& op, const AttentionPlan& plan, const Member& member) {
  const AttentionWork work = plan.work();
  if (op.dtype == DType::kF32) {
    return run<TileRun<Arithmetic<float, FloatUnits, FloatUnits>>>(op, work, member);
  }
#if defined(RTP_HAS_AMX)
  const TileRegisters registers;
  run<PartitionRun>(op, work, member);
#elif defined(RTP_HAS_AVX512_BF16)
  run<TileRun<Arithmetic<bf16, PairUnits, PairUnits>>>(op, work, member);
#else
  run<TileRun<Arithmetic<bf16, WidenedUnits, CopiedUnits>>>(op, work, member);
#endif
}

}  // namespace rtp::RTP_ISA_NAMESPACE
