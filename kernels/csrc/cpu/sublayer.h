// The two halves of a decoder layer, each adding to the residual stream what it makes of it. A
// step runs all of them in one call of the team (run_sublayers):
//
//   attention    residual += o(attend(rope(qkv(norm(residual)))))    and writes keys and values
//   gated MLP    residual += down(silu_and_mul(gate_up(norm(residual))))
//   sparse MLP   moe_sublayer.h
//
// A sublayer of a group has a rank's part of the heads or of the columns in between: its product is
// a part of what is added, in float, and so is the sum of all ranks' parts, in rank order.
//
// The same in single ops gives the same bits.
#pragma once

#include <vector>

#include "attention.h"
#include "gemm.h"
#include "kv_write.h"
#include "rank_exchange.h"
#include "rotary.h"

namespace rtp {

// What the sublayers of one step share.
struct Step {
  DType dtype;
  int64_t num_tokens, hidden_size;

  const int64_t* positions;  // [num_tokens], or [3, num_tokens] with rows positions_stride apart
  int64_t num_position_rows, positions_stride;
  int64_t last_position;  // the largest; none is negative

  const int64_t* slots;  // [num_tokens]
  char* kv_cache;        // [num_blocks, num_layers, 2, num_kv_heads, kBlockTokens, head_dim]
  int64_t num_layers, num_blocks;
  int64_t block_stride;  // elements from one block to the next

  AttentionGeometry geometry;
  const int32_t* block_tables;  // [num_seqs, max_blocks]; rows block_tables_stride apart
  int64_t block_tables_stride;
  const AttentionPlan* plan;
};

// Where a sublayer reads and stores; none of it is the same.
struct Place {
  const void* residual;  // [num_tokens, hidden_size]
  void* out;             // the same and what the sublayer adds
  char* workspace;       // of the bytes that it asks for
  int32_t* kept;         // the words that it asks for: its own until the run of all has ended

  // Of a sublayer whose group adds up: which of the run's sums it is, and the stage it begins at.
  RankExchange* exchange = nullptr;
  int sum = 0, stage = 0;
};

struct Norm {
  const void* weight;  // [k], or null for none
  float eps;
};

class Sublayer {
 public:
  virtual ~Sublayer() = default;

  explicit Sublayer(RankGroup* group = nullptr) : group_(group) {}

  // Of queries; 0 without attention.
  virtual int64_t num_heads() const { return 0; }

  // Null where no other rank has a part in it.
  RankGroup* group() const { return group_; }

  // Whether the step's arrays are those it was made for: throws std::invalid_argument.
  virtual void check(const Step& step) const = 0;

  // Of the workspace.
  virtual int64_t workspace_bytes(const Step& step) const = 0;

  // Words that outlast its run.
  virtual int64_t num_kept() const { return 0; }

  // What a member reads first.
  virtual Ahead first_reads(const Step& step, const Member& member) const = 0;

  // `next` is what the member reads afterwards.
  virtual void run(const Step& step, const Place& place, const Member& member,
                   const Ahead& next) const = 0;

  // What later steps read of it, keys and values, and nothing else: `place.out` is not touched.
  virtual void write_cache(const Step& /*step*/, const Place& /*place*/,
                           const Member& /*member*/) const {}

  // On the calling thread, when all have run.
  virtual void finish(const int32_t* /*kept*/) const {}

 private:
  RankGroup* const group_;
};

// Adds all of them to `residual` [num_tokens, hidden_size] in place, on the calling thread's team.
// Throws std::bad_alloc; std::invalid_argument if they are of several groups, or Ended.
void run_sublayers(const std::vector<const Sublayer*>& sublayers, const Step& step, void* residual);

// Sublayer::write_cache of one, on the calling thread's team. Throws std::bad_alloc.
void write_cache(const Sublayer& sublayer, const Step& step, const void* residual);

class AttentionSublayer final : public Sublayer {
 public:
  struct Parts {
    DType dtype;
    Norm norm;
    Projection qkv, o;
    Norm query_norm, key_norm;  // of heads
    int64_t num_heads, num_kv_heads, head_dim;
    const float* cos_sin;  // [max_positions, head_dim]
    int64_t max_positions, cos_sin_stride;
    int64_t sections[3];  // of frequencies, where there are three rows of positions
    int64_t layer;        // of the cache
    float scale;
  };

  AttentionSublayer(const Parts& parts, RankGroup* group) : Sublayer(group), parts_(parts) {}

  int64_t num_heads() const override { return parts_.num_heads; }
  void check(const Step& step) const override;
  int64_t workspace_bytes(const Step& step) const override;
  Ahead first_reads(const Step& step, const Member& member) const override;
  void run(const Step& step, const Place& place, const Member& member,
           const Ahead& next) const override;
  void write_cache(const Step& step, const Place& place, const Member& member) const override;

 private:
  struct Buffers;
  void write(const Step& step, const Place& place, const Buffers& buffers,
             const Member& member) const;
  Rotary rotary(const Step& step, const Buffers& buffers) const;
  WriteKv kv_write(const Step& step, const Buffers& buffers) const;
  PagedAttention attention(const Step& step, const Buffers& buffers) const;
  char* cache(const Step& step, int64_t index) const;
  int64_t qkv_columns() const {
    return (parts_.num_heads + 2 * parts_.num_kv_heads) * parts_.head_dim;
  }

  Parts parts_;
};

class MlpSublayer final : public Sublayer {
 public:
  struct Parts {
    DType dtype;
    Norm norm;
    Projection gate_up, down;
  };

  MlpSublayer(const Parts& parts, RankGroup* group) : Sublayer(group), parts_(parts) {}

  void check(const Step& step) const override;
  int64_t workspace_bytes(const Step& step) const override;
  Ahead first_reads(const Step& step, const Member& member) const override;
  void run(const Step& step, const Place& place, const Member& member,
           const Ahead& next) const override;

 private:
  Parts parts_;
};

}  // namespace rtp
