// A step of some of another's tokens, each a sequence of its own that ends with it: what it sees of
// the cache is what it sees there, so the same layer gives the same bits for it.
#pragma once

#include <vector>

#include "sublayer.h"

namespace rtp {

class NarrowedStep {
 public:
  // Tokens `rows` [count], each of some sequence of `step`, which has no ancestor mask.
  NarrowedStep(const Step& step, const int64_t* rows, int64_t count);

  // Without a plan. Valid as long as this object and the arrays of the other step.
  const Step& step() const { return step_; }

  NarrowedStep(const NarrowedStep&) = delete;
  NarrowedStep& operator=(const NarrowedStep&) = delete;

 private:
  Step step_;
  std::vector<int64_t> positions_, slots_;
  std::vector<int32_t> query_start_loc_, seq_lens_, block_tables_;
};

}  // namespace rtp
