#include "placement.h"

#if defined(__linux__)

#include <sched.h>

#include <algorithm>

namespace rtp {
namespace {

void run_on(pthread_t thread, const int* cores, size_t count) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (size_t i = 0; i < count; ++i) CPU_SET(cores[i], &set);
  // Fails where the system has taken the cores away since; then the thread runs where it may.
  pthread_setaffinity_np(thread, sizeof set, &set);
}

}  // namespace

Placement::Placement(int size) {
  cpu_set_t set;
  if (pthread_getaffinity_np(pthread_self(), sizeof set, &set) || CPU_COUNT(&set) != size) return;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &set)) cores_.push_back(core);
  }
}

bool Placement::is_caller_free() const {
  cpu_set_t set;
  if (pthread_getaffinity_np(pthread_self(), sizeof set, &set)) return false;
  if (static_cast<size_t>(CPU_COUNT(&set)) != cores_.size()) return false;
  return std::all_of(cores_.begin(), cores_.end(), [&](int core) { return CPU_ISSET(core, &set); });
}

void Placement::hold(const std::vector<pthread_t>& others) {
  is_held_ = !cores_.empty() && is_caller_free();
  if (!is_held_) return;
  const int here = sched_getcpu();
  run_on(pthread_self(), &here, 1);
  if (here == first_) return;
  first_ = here;
  size_t next = 0;
  for (const pthread_t thread : others) {
    if (cores_[next] == here) ++next;
    run_on(thread, &cores_[next++], 1);
  }
}

void Placement::release() const {
  if (is_held_) run_on(pthread_self(), cores_.data(), cores_.size());
}

}  // namespace rtp

#else

namespace rtp {

Placement::Placement(int) {}
void Placement::hold(const std::vector<pthread_t>&) {}
void Placement::release() const {}

}  // namespace rtp

#endif
