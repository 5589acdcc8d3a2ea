#include "priced.h"

#include <algorithm>

namespace rtp {
namespace {

constexpr double kNear = 1e-9;

}  // namespace

std::vector<int64_t> priced(const Workloads& workers, const Prices& prices, double mean_s,
                            double* costs) {
  const int64_t count = workers.count;
  double least_wait = workers.wait_s[0];
  double least_work = workers.prefill_s[0] + workers.load_s[0];
  for (int64_t i = 1; i < count; ++i) {
    least_wait = std::min(least_wait, workers.wait_s[i]);
    least_work = std::min(least_work, workers.prefill_s[i] + workers.load_s[i]);
  }
  const double base = prices.fleet * (least_wait / mean_s);
  for (int64_t i = 0; i < count; ++i) {
    const double work = workers.prefill_s[i] + workers.load_s[i];
    const double price = base + prices.queue * workers.crowds[i];
    costs[i] = workers.wait_s[i] + work;
    costs[i] += price * (work - least_work);
    costs[i] += prices.decode * static_cast<double>(workers.num_decoding[i]) * workers.prefill_s[i];
  }
  const double near = *std::min_element(costs, costs + count) + kNear;
  double most_free = -1e300;
  std::vector<int64_t> found;
  for (int64_t i = 0; i < count; ++i) {
    if (!(costs[i] <= near)) continue;
    if (workers.free_fraction[i] > most_free) {
      most_free = workers.free_fraction[i];
      found.clear();
    }
    if (workers.free_fraction[i] == most_free) found.push_back(i);
  }
  return found;
}

}  // namespace rtp
