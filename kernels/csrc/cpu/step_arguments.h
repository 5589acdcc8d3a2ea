// What the bindings that run sublayers take and check alike. Errors name the op.
#pragma once

#include <memory>
#include <vector>

#include "paged_arguments.h"
#include "sublayer.h"

namespace rtp {

// A sublayer and the arrays it reads; its linear weights are kept alive by the binding.
struct BoundSublayer {
  std::unique_ptr<Sublayer> sublayer;
  std::vector<CpuArray> arrays;
};

using Sublayers = std::vector<const Sublayer*>;

Sublayers sublayers_of(const std::vector<const BoundSublayer*>& bound);

// Of [num_tokens, hidden_size].
struct Stream {
  DType dtype;
  int64_t num_tokens, hidden_size;
};

struct StepArrays {
  const CpuArray& positions;
  const CpuArray& kv_cache;
  const CpuArray& slots;
  SequenceArrays sequences;
};

// The step, except for its plan.
Step check_step(const char* op, const Sublayers& sublayers, const Stream& stream,
                const StepArrays& arrays);

// `weight` [size] of a norm; an argument of None gives none.
Norm bind_norm(const char* op, const char* name, const CpuArray& weight, float eps, DType dtype,
               int64_t size);

}  // namespace rtp
