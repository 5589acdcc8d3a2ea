// Ranks of one node that compute together: each has an area that the others read, and says by a
// count how far it has come.
//
//   generation g     every rank stores into its slot, arrives, waits for all, and reads all slots
//
// Generations are counted by each rank alone, in the same order on all. An area has two halves,
// which generations take in turns; so a rank may store into its slot of g + 1 while another still
// reads g: who has arrived at g + 1 has read g.
//
// A rank that dies, leaves, aborts or is waited for too long ends the group: all waits of all ranks
// throw Ended from then on, with the first cause.
#pragma once

#include <atomic>
#include <cstdint>

#include "bell.h"
#include "ended.h"
#include "mapping.h"
#include "participant.h"
#include "patience.h"

namespace rtp {

class RankGroup {
 public:
  static int64_t file_bytes(int size, int64_t slot_bytes);

  // `slot_bytes` is half an area. Throws std::invalid_argument if the place is taken, or others
  // have joined a group of another size.
  RankGroup(int descriptor, int rank, int size, int64_t slot_bytes, double timeout_s);
  ~RankGroup() { close(); }

  int rank() const { return rank_; }
  int size() const { return size_; }
  int64_t slot_bytes() const { return slot_bytes_; }
  bool has_all() const;

  // The first of `count` generations that come now. Not to be called by two threads at once.
  uint32_t begin(uint32_t count = 1) { return (generation_ += count) - count + 1; }

  char* slot(int rank, uint32_t generation) const;

  // What this rank has stored is complete. May be repeated, however late.
  void arrive(uint32_t generation);

  // Whether all ranks have.
  bool has_arrived(uint32_t generation) const;

  // For all ranks to arrive; throws Ended. Any number of threads.
  void wait(uint32_t generation);

  // Ends the group for all ranks. Any thread, any time.
  void abort() { end(End::kAborted, rank_); }

  // This rank takes no further part: others lose it where they wait for it.
  void close();

 private:
  struct Header;
  struct Record;

  void watch(int waited_for, uint32_t generation, Patience& patience);
  void end(End how, int rank);
  void check() const;
  Record& record(int rank) const;

  const int rank_, size_;
  const int64_t slot_bytes_;
  const double timeout_s_;
  const Mapping mapping_;
  Header& header_;
  std::atomic<bool> is_closed_{false};
  uint32_t generation_ = 0;
};

}  // namespace rtp
