// The sparse MLP half of a decoder layer:
//
//   residual += Σ weight * expert(norm(residual)), over the experts that the router chooses,
//               and sigmoid(gate) * shared(norm(residual)), where there is a shared expert
//
// The sum is rounded once, with the residual. The same in single ops gives the same bits.
#pragma once

#include "experts.h"
#include "sublayer.h"

namespace rtp {

class MoeSublayer final : public Sublayer {
 public:
  struct Parts {
    DType dtype;
    Norm norm;
    Projection router;            // a logit an expert, then the shared expert's gate
    ExpertStack experts, shared;  // shared.count is 0 or 1
    int64_t top_k;
    bool is_renormalized;
    int64_t* load;  // [experts.count]: rows that each expert got, counted on
  };

  explicit MoeSublayer(const Parts& parts) : parts_(parts) {}

  void check(const Step& step) const override;
  int64_t workspace_bytes(const Step& step) const override;
  int64_t num_kept() const override { return parts_.experts.count + 1; }
  Ahead first_reads(const Step& step, const Member& member) const override;
  void run(const Step& step, const Place& place, const Member& member,
           const Ahead& next) const override;
  void finish(const int32_t* kept) const override;

 private:
  struct Buffers;
  Linear router(const Step& step, const void* residual, void* logits) const;
  void route(const Step& step, const Place& place, const Buffers& buffers,
             const Member& member) const;
  Experts experts(const Step& step, const Place& place, const Buffers& buffers) const;

  Parts parts_;
};

}  // namespace rtp
