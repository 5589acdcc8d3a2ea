// Logits → tokens, and the log-probabilities of tokens. One row is one piece of work: what becomes
// of it depends on that row and its parameters alone.
#pragma once

#include <cstdint>

#include "isa.h"
#include "team.h"

namespace rtp {

// Where no logit is NaN and the largest is finite, a token; elsewhere kNoToken.
inline constexpr int32_t kNoToken = -1;

// Row i of the logits starts at i * stride. Filters act in the order of their fields; each keeps
// tokens of equal logits together.
struct Sample {
  int32_t* token_ids;   // [n]
  const float* logits;  // [n, vocab_size]
  int64_t n, vocab_size, stride;
  const float* temperature;  // [n], 0 takes the first of the largest logits; null is 0 for all
  const float* min_p;        // [n], times the largest weight; 0 keeps all
  const int32_t* top_k;      // [n], 0 keeps all
  const float* top_p;        // [n], of the weight the others left; 1 keeps all
  const double* number;      // [n], in [0, 1): how far to go through the weights, by ascending id
};

// Rows without a finite largest logit get NaN for all log-probabilities.
struct Logprobs {
  double* own;               // [n], of token_ids
  int32_t* ranks;            // [n], 1 for the largest logit; among equals the lower id comes first
  double* top;               // [n, num_top]
  int32_t* top_ids;          // [n, num_top], best first
  const float* logits;       // [*, vocab_size]
  const int64_t* rows;       // [n], of the logits
  const int32_t* token_ids;  // [n]
  int64_t n, vocab_size, stride, num_top;
};

}  // namespace rtp

RTP_PER_ISA(void sample(const Sample& op, const Member& member);
            void logprobs(const Logprobs& op, const Member& member);)
