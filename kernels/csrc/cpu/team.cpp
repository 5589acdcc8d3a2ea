#include "team.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "placement.h"

namespace rtp {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMaxThreads = 512;

// A barrier inside a step comes every few microseconds to some hundreds: the others are near.
constexpr auto kBarrierSpin = std::chrono::microseconds(50);

// The next call comes after some Python: between two of a step, and between two steps.
constexpr auto kIdleSpin = std::chrono::microseconds(300);

// Spinning alone for so long; then between yields, so that whoever wants the core has it.
constexpr auto kOwnSpin = std::chrono::microseconds(5);

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// As much as stays in a second-level cache beside what is read in between.
constexpr int64_t kFetchBytes = 64 << 10;

// Fetches into the cache until `word` is no longer `old`, or there is enough.
void fetch_while(const std::atomic<int>& word, int old, const Ahead& ahead) {
  const int64_t bytes = std::min(ahead.bytes, kFetchBytes);
  for (int64_t i = 0; i < bytes && word.load(std::memory_order_acquire) == old; i += 256) {
    for (const char* stream : ahead.streams) {
      for (int line = 0; stream && line < 256; line += 64) __builtin_prefetch(stream + i + line);
    }
  }
}

// Returns when `word` is no longer `old`.
void wait_while(const std::atomic<int>& word, int old, Clock::duration spin) {
  const auto start = Clock::now();
  for (auto now = start; now < start + spin; now = Clock::now()) {
    if (now > start + kOwnSpin) std::this_thread::yield();
    for (int i = 0; i < 32; ++i) {
      if (word.load(std::memory_order_acquire) != old) return;
      pause();
    }
  }
  while (word.load(std::memory_order_acquire) == old) word.wait(old, std::memory_order_acquire);
}

}  // namespace

// Every thread takes part in every call.
class Team {
 public:
  explicit Team(int size) : size_(size), placement_(size) {
    for (int index = 1; index < size; ++index) {
      threads_.emplace_back([this, index] { work(index); });
      handles_.push_back(threads_.back().native_handle());
    }
  }

  ~Team() {
    function_ = nullptr;
    start();
    for (std::thread& thread : threads_) thread.join();
  }

  int size() const { return size_; }

  void run(TeamFunction function, void* context) {
    function_ = function;
    context_ = context;
    num_working_.store(size_ - 1, std::memory_order_relaxed);
    placement_.hold(handles_);
    start();
    function(context, Member(this, 0, size_));
    for (int left; (left = num_working_.load(std::memory_order_acquire)) != 0;) {
      wait_while(num_working_, left, kBarrierSpin);
    }
    placement_.release();
  }

  void barrier(const Ahead& ahead) {
    const int round = round_.load(std::memory_order_relaxed);
    if (num_arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      num_arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      round_.notify_all();
    } else {
      fetch_while(round_, round, ahead);
      wait_while(round_, round, kBarrierSpin);
    }
  }

 private:
  void start() {
    call_.fetch_add(1, std::memory_order_release);
    call_.notify_all();
  }

  void work(int index) {
    for (int call = 0;; ++call) {
      wait_while(call_, call, kIdleSpin);
      if (!function_) return;
      function_(context_, Member(this, index, size_));
      num_working_.fetch_sub(1, std::memory_order_acq_rel);
      num_working_.notify_one();
    }
  }

  const int size_;
  TeamFunction function_ = nullptr;
  void* context_ = nullptr;
  Placement placement_;
  std::vector<std::thread> threads_;
  std::vector<pthread_t> handles_;
  // Each on a cache line of its own.
  alignas(64) std::atomic<int> call_{0};
  alignas(64) std::atomic<int> num_working_{0};
  alignas(64) std::atomic<int> num_arrived_{0};
  alignas(64) std::atomic<int> round_{0};
};

namespace {

struct ThreadTeam {
  int size = 1;
  std::unique_ptr<Team> team;  // started by the first call that needs it
};

thread_local ThreadTeam own;

}  // namespace

void Member::wait_for_others(const Ahead& ahead) const { team_->barrier(ahead); }

int num_threads() { return own.size; }

void set_num_threads(int count) {
  if (count < 1 || count > kMaxThreads) {
    throw std::invalid_argument("num_threads must be from 1 to " + std::to_string(kMaxThreads) +
                                ", got " + std::to_string(count));
  }
  if (count != own.size) own.team.reset();
  own.size = count;
}

void call_team(TeamFunction function, void* context) {
  if (!own.team) own.team = std::make_unique<Team>(own.size);
  own.team->run(function, context);
}

}  // namespace rtp
