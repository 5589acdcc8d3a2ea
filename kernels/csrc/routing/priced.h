// The costs of the policy `priced` (rtp_serve/routing/policies/priced.py has the formula), in the
// order of its array operations, so bit for bit.
#pragma once

#include <cstdint>
#include <vector>

namespace rtp {

struct Prices {
  double fleet;
  double queue;
  double decode;
};

// `count` elements each.
struct Workloads {
  const double* wait_s;
  const double* prefill_s;
  const double* load_s;
  const int64_t* num_decoding;
  const double* crowds;  // queues, to their power
  const double* free_fraction;
  int64_t count;
};

// Fills `costs` and names those that are taken for the least: no more than a nanosecond above it,
// and of these the ones with the most free blocks. In ascending order. `count` is at least one.
std::vector<int64_t> priced(const Workloads& workers, const Prices& prices, double mean_s,
                            double* costs);

}  // namespace rtp
