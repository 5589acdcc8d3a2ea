// The threads of one piece of work: all run the same function, each on its share, and wait for
// each other inside it.
//
//   run_team(is_parallel, [&](const Member& member) {
//     first(member);    // a kernel computes the member's share
//     member.wait();    // all of it is there
//     second(member);
//   });
//
// The threads belong to the one that calls; it is member 0. They spin for a short while where they
// wait, at a barrier or for the next call, and then sleep, so that neighbours on the same cores are
// not in their way.
#pragma once

#include <cstdint>
#include <type_traits>

namespace rtp {

// Sources of several instruction sets include this: nothing of it may stay out of line.
#define RTP_ALWAYS_INLINE inline __attribute__((always_inline))

class Team;

// Memory that a member reads after it has waited: where, in one stream or two side by side.
struct Ahead {
  const char* streams[2];
  int64_t bytes;  // of each
};

// One thread's place in a team.
class Member {
 public:
  Member(Team* team, int index, int size) : team_(team), index_(index), size_(size) {}

  RTP_ALWAYS_INLINE int index() const { return index_; }
  RTP_ALWAYS_INLINE int size() const { return size_; }

  // Where this member's part of [0, total) begins, all parts being near-equal and in order.
  RTP_ALWAYS_INLINE int64_t begin(int64_t total) const { return total * index_ / size_; }
  RTP_ALWAYS_INLINE int64_t end(int64_t total) const { return total * (index_ + 1) / size_; }

  // Returns when all members have called it. What they wrote before is seen by all after.
  RTP_ALWAYS_INLINE void wait() const {
    if (size_ > 1) wait_for_others({});
  }

  // The same, and meanwhile fetches the beginning of what comes, so that memory is never idle.
  RTP_ALWAYS_INLINE void wait(const Ahead& ahead) const {
    if (size_ > 1) wait_for_others(ahead);
  }

 private:
  void wait_for_others(const Ahead& ahead) const;

  Team* team_;
  int index_, size_;
};

// Members of the calling thread's team; 1 until it sets another number.
int num_threads();

// Of the calling thread. Throws std::invalid_argument unless `count` is from 1 to 512.
void set_num_threads(int count);

using TeamFunction = void (*)(void* context, const Member& member);

void call_team(TeamFunction function, void* context);

// Calls body(member) on the calling thread's team, or here alone. `body` must not throw.
template <typename Body>
void run_team(bool is_parallel, Body&& body) {
  if (!is_parallel || num_threads() == 1) {
    body(Member(nullptr, 0, 1));
    return;
  }
  using Function = std::remove_reference_t<Body>;
  call_team([](void* context, const Member& member) { (*static_cast<Function*>(context))(member); },
            &body);
}

}  // namespace rtp
