// The threads of one piece of work: all run the same function, each on its share, and wait for
// each other inside it.
//
//   run_team(threads, [&](Member& member) {
//     first(member);    // a kernel computes the member's share
//     member.wait();    // all of it is there
//     second(member);
//   });
//
// The threads belong to the one that calls; it is member 0. They spin for a short while where they
// wait, at a barrier or for the next call, and then sleep, so that neighbours on the same cores are
// not in their way.
#pragma once

#include <type_traits>

namespace rtp {

class Team;

// One thread's place in a team.
class Member {
 public:
  Member(Team* team, int index, int size) : team_(team), index_(index), size_(size) {}

  int index() const { return index_; }
  int size() const { return size_; }

  // Returns when all members have called it. What they wrote before is seen by all after.
  void wait() {
    if (size_ > 1) wait_for_others();
  }

 private:
  void wait_for_others();

  Team* team_;
  int index_, size_;
};

// Members of the calling thread's team; 1 until it sets another number.
int num_threads();

// Of the calling thread. Throws std::invalid_argument unless `count` is from 1 to 512.
void set_num_threads(int count);

using TeamFunction = void (*)(void* context, Member& member);

void run_team(TeamFunction function, void* context);

// Calls body(member) on the calling thread's team, or here alone. `body` must not throw.
template <typename Body>
void run_team(bool is_parallel, Body&& body) {
  if (!is_parallel || num_threads() == 1) {
    Member alone(nullptr, 0, 1);
    body(alone);
    return;
  }
  using Function = std::remove_reference_t<Body>;
  run_team([](void* context, Member& member) { (*static_cast<Function*>(context))(member); },
           &body);
}

}  // namespace rtp
