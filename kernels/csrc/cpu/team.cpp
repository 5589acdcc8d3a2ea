#include "team.h"

#include <atomic>
#include <bit>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "fetch.h"
#include "phase.h"
#include "placement.h"

namespace rtp {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMaxThreads = 512;

// The next call comes after some Python: between two of a step, and between two steps.
constexpr auto kIdleSpin = std::chrono::microseconds(300);

// The others leave a call within microseconds, if they are running.
constexpr auto kLeaveSpin = std::chrono::microseconds(50);

// Spinning alone for so long; then between yields, so that whoever wants the core has it.
constexpr auto kOwnSpin = std::chrono::microseconds(5);

// Between looks at what somebody else has to end, after that.
constexpr auto kNap = std::chrono::microseconds(20);

// Of a unit that somebody else runs, where this member has run none to tell.
constexpr auto kUnitTime = std::chrono::microseconds(10);

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Whether it came to be within `time`.
template <typename Condition>
bool spin_until(const Condition& is_over, Clock::duration time) {
  const auto start = Clock::now();
  do {
    for (int i = 0; i < 8; ++i) {
      if (is_over()) return true;
      pause();
    }
  } while (Clock::now() - start < time);
  return false;
}

template <typename Condition>
void wait_until(const Condition& is_over) {
  if (spin_until(is_over, kOwnSpin)) return;
  for (int yields = 0; !is_over(); ++yields) {
    yields < 8 ? std::this_thread::yield() : std::this_thread::sleep_for(kNap);
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

class Team {
 public:
  explicit Team(int size)
      : size_(size), placement_(size), shares_(size), stages_(size), phases_(size) {
    for (int index = 1; index < size; ++index) {
      threads_.emplace_back([this, index] { work(index); });
      handles_.push_back(threads_.back().native_handle());
    }
  }

  ~Team() {
    is_ending_ = true;
    start();
    for (std::thread& thread : threads_) thread.join();
  }

  void run(TeamFunction function, void* context) {
    function_ = function;
    context_ = context;
    stages_[0].store(0, std::memory_order_relaxed);
    placement_.hold(handles_);
    num_inside_.store(0, std::memory_order_release);
    start();
    const Member member(this, 0, size_, first_phase_);
    function(context, member);
    // Whoever has not come by now has nothing to do here.
    int inside = num_inside_.fetch_or(kClosed, std::memory_order_acq_rel) | kClosed;
    for (; inside != kClosed; inside = num_inside_.load(std::memory_order_acquire)) {
      wait_while(num_inside_, inside, kLeaveSpin);
    }
    phases_[0] = member.phase_;
    begin_after_all_phases();
    placement_.release();
  }

  void share(const Member& member, const Work& work) {
    const uint32_t phase = ++member.phase_;
    for (int share = 0; share < size_; ++share) {
      shares_[share].open(phase, work.num_units(work.work, share));
    }
    const auto start = Clock::now();
    const int num_run = run_free_units(member, work);
    const auto is_over = [&] { return is_complete(phase, work); };
    if (is_over()) return;
    const auto now = Clock::now();
    fetch_until(is_over, member.ahead_);
    // Whoever runs a unit for longer than it took here has been put aside.
    const auto unit_time = num_run ? (now - start) / num_run : kUnitTime;
    if (spin_until(is_over, 2 * unit_time)) return;
    if (work.repeats == Repeats::kYes) run_unended_units(phase, work);
    wait_until(is_over);
  }

  void come_to(int index, int stage, int others) {
    stages_[index].store(stage, std::memory_order_seq_cst);
    wait_until([&] {
      for (int i = 0; i < size_; ++i) {
        if (i != index && stages_[i].load(std::memory_order_acquire) < others) return false;
      }
      return true;
    });
  }

 private:
  // In num_inside_, beside the number: nobody enters any more.
  static constexpr int kClosed = 1 << 30;

  void start() {
    call_.fetch_add(1, std::memory_order_release);
    call_.notify_all();
  }

  // Some members may have left before others. Nobody is inside.
  void begin_after_all_phases() {
    for (uint32_t phase : phases_) {
      if (static_cast<int32_t>(phase - first_phase_) > 0) first_phase_ = phase;
    }
    phases_.assign(size_, first_phase_);
  }

  bool enter() {
    int inside = num_inside_.load(std::memory_order_relaxed);
    do {
      if (inside & kClosed) return false;
    } while (!num_inside_.compare_exchange_weak(inside, inside + 1, std::memory_order_acq_rel));
    return true;
  }

  void work(int index) {
    stages_[index].store(kAway);
    for (int call = 0;;) {
      wait_while(call_, call, kIdleSpin);
      call = call_.load(std::memory_order_acquire);
      if (is_ending_) return;
      if (!enter()) continue;
      stages_[index].store(0);
      const Member member(this, index, size_, first_phase_);
      function_(context_, member);
      phases_[index] = member.phase_;
      stages_[index].store(kAway);
      num_inside_.fetch_sub(1, std::memory_order_acq_rel);
      num_inside_.notify_one();
    }
  }

  // Of its own share from the front, of others from the back; returns how many.
  int run_free_units(const Member& member, const Work& work) {
    int count = 0;
    for (int i = 0; i < size_; ++i) {
      const int index = member.index_ + i < size_ ? member.index_ + i : member.index_ + i - size_;
      Share& share = shares_[index];
      for (int unit;
           (unit = i ? share.take_last(member.phase_) : share.take_first(member.phase_)) >= 0;) {
        work.run(work.work, index, unit);
        share.end(member.phase_, unit);
        ++count;
      }
    }
    return count;
  }

  void run_unended_units(uint32_t phase, const Work& work) {
    for (int index = 0; index < size_; ++index) {
      Share& share = shares_[index];
      for (uint32_t left; (left = share.unended(phase, work.num_units(work.work, index))) != 0;) {
        const int unit = std::countr_zero(left);
        work.run(work.work, index, unit);
        share.end(phase, unit);
      }
    }
  }

  bool is_complete(uint32_t phase, const Work& work) const {
    for (int share = 0; share < size_; ++share) {
      if (shares_[share].unended(phase, work.num_units(work.work, share))) return false;
    }
    return true;
  }

  // Each on a cache line of its own.
  struct alignas(64) Stage : std::atomic<int> {
    using std::atomic<int>::operator=;
  };

  const int size_;
  Placement placement_;
  std::vector<Share> shares_;
  std::vector<Stage> stages_;
  std::vector<uint32_t> phases_;  // that each member was last in
  TeamFunction function_ = nullptr;
  void* context_ = nullptr;
  uint32_t first_phase_ = 0;
  bool is_ending_ = false;
  alignas(64) std::atomic<int> call_{0};
  alignas(64) std::atomic<int> num_inside_{kClosed};
  std::vector<std::thread> threads_;
  std::vector<pthread_t> handles_;
};

namespace {

struct ThreadTeam {
  int size = 1;
  std::unique_ptr<Team> team;  // started by the first call that needs it
};

thread_local ThreadTeam own;

}  // namespace

void Member::share(const Work& work) const { team_->share(*this, work); }

void Member::wait_for_stage(int stage, int others) const { team_->come_to(index_, stage, others); }

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
