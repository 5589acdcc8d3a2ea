// The threads of one piece of work: all run the same function, phase by phase.
//
//   run_team(is_parallel, [&](const Member& member) {
//     first(member);     // a phase: member.split(...), units of work for whoever is free
//     second(member);    // sees all that the first has stored
//   });
//
// Nobody waits for a thread that the system has put aside for another process. A phase has a share
// for each member, cut into units: a member runs the units of its own share, then those of others
// that nobody has begun, and at last, if nothing else is left, again those that somebody has begun
// and not ended. For this a unit is *repeatable*: it stores final values only, and reads nothing
// that changes before all members are past it (Member::come_to). A unit that ends late then stores
// the bits that are there.
//
// The threads belong to the one that calls; it is member 0. They spin for a short while where they
// wait for the next call, and then sleep, so that neighbours on the same cores are not in their
// way.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "types.h"

namespace rtp {

class Team;

// Memory that a member reads next: where, in one stream or two side by side.
struct Ahead {
  const char* streams[2];
  int64_t bytes;  // of each
};

// Of a share.
constexpr int kMaxUnits = 32;

// Beyond every stage: of a member that takes no part.
constexpr int kAway = std::numeric_limits<int>::max();

// Whether running a unit again gives the same: see above.
enum class Repeats { kNo, kYes };

// A phase's work, as a team takes it.
struct Work {
  int (*num_units)(const void* work, int share);  // at most kMaxUnits
  void (*run)(const void* work, int share, int unit);
  const void* work;
  Repeats repeats;
};

// One thread's place in a team.
class Member {
 public:
  Member(Team* team, int index, int size, uint32_t phase)
      : team_(team), index_(index), size_(size), phase_(phase) {}

  // Of a team of its own.
  static RTP_ALWAYS_INLINE Member alone() { return Member(nullptr, 0, 1, 0); }

  RTP_ALWAYS_INLINE int index() const { return index_; }
  RTP_ALWAYS_INLINE int size() const { return size_; }

  // Where a share's part of [0, total) begins, all parts being near-equal and in order.
  RTP_ALWAYS_INLINE int64_t begin(int64_t total, int share) const { return total * share / size_; }
  RTP_ALWAYS_INLINE int64_t end(int64_t total, int share) const {
    return total * (share + 1) / size_;
  }

  // What this member fetches into its cache when it has to wait in the phases that follow.
  RTP_ALWAYS_INLINE void reads_next(const Ahead& ahead) const { ahead_ = ahead; }
  RTP_ALWAYS_INLINE const Ahead& ahead() const { return ahead_; }

  // A phase: body(share, unit) for every unit of num_units(share) of every share. Returns when all
  // of them have run; what they stored is seen by all after.
  template <typename Count, typename Body>
  RTP_ALWAYS_INLINE void each(Count&& num_units, Repeats repeats, Body&& body) const {
    if (size_ == 1) {
      const int units = num_units(0);
      for (int unit = 0; unit < units; ++unit) body(0, unit);
      return;
    }
    struct Bound {
      std::remove_reference_t<Count>* num_units;
      std::remove_reference_t<Body>* body;
    } bound{&num_units, &body};
    share({[](const void* work, int share) {
             return static_cast<int>((*static_cast<const Bound*>(work)->num_units)(share));
           },
           [](const void* work, int share, int unit) {
             (*static_cast<const Bound*>(work)->body)(share, unit);
           },
           &bound, repeats});
  }

  // A phase over [0, total): body(begin, end) for parts of at least `grain`, where there are such.
  template <typename Body>
  RTP_ALWAYS_INLINE void split(int64_t total, int64_t grain, Repeats repeats, Body&& body) const {
    const auto num_units = [&](int share) {
      const int64_t count = (end(total, share) - begin(total, share) + grain - 1) / grain;
      return static_cast<int>(count < kMaxUnits ? count : kMaxUnits);
    };
    each(num_units, repeats, [&](int share, int unit) {
      const int64_t first = begin(total, share), size = end(total, share) - first;
      const int units = num_units(share);
      body(first + size * unit / units, first + size * (unit + 1) / units);
    });
  }

  // Says that this member has come to `stage` of the call, counted from 0, and returns when all
  // others are at `others` at least. What they read and store before may change from then on.
  RTP_ALWAYS_INLINE void come_to(int stage, int others) const {
    if (size_ > 1) wait_for_stage(stage, others);
  }

  // Says that this member takes no further part in the call: nobody waits for it. Those that stay
  // run all units.
  RTP_ALWAYS_INLINE void leave() const { come_to(kAway, 0); }

 private:
  friend class Team;

  void share(const Work& work) const;
  void wait_for_stage(int stage, int others) const;

  Team* team_;
  int index_, size_;
  // A thread's own account of a call: the phases it has been through, and what it reads next.
  mutable uint32_t phase_;
  mutable Ahead ahead_{};
};

// Members of the calling thread's team; 1 until it sets another number.
int num_threads();

// Of the calling thread. Throws std::invalid_argument unless `count` is from 1 to 512.
void set_num_threads(int count);

using TeamFunction = void (*)(void* context, const Member& member);

void call_team(TeamFunction function, void* context);

// Calls body(member) on the calling thread's team, or here alone. All members that take part go
// through the same phases; a thread that comes too late takes none. `body` must not throw.
template <typename Body>
void run_team(bool is_parallel, Body&& body) {
  if (!is_parallel || num_threads() == 1) {
    body(Member::alone());
    return;
  }
  using Function = std::remove_reference_t<Body>;
  call_team([](void* context, const Member& member) { (*static_cast<Function*>(context))(member); },
            &body);
}

}  // namespace rtp
