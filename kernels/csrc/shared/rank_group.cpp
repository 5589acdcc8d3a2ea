#include "rank_group.h"

#include <stdexcept>

namespace rtp {
namespace {

constexpr int64_t kPage = 4096;

int64_t whole_pages(int64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

}  // namespace

struct RankGroup::Header {
  std::atomic<int64_t> slot_bytes;
  std::atomic<int> num_joined;
  alignas(64) std::atomic<uint64_t> end;  // 0, or how and whose doing
};

struct RankGroup::Record {
  Participant participant;
  Bell arrived;
};

int64_t RankGroup::file_bytes(int size, int64_t slot_bytes) {
  return whole_pages(sizeof(Header) + size * sizeof(Record)) + 2 * size * whole_pages(slot_bytes);
}

RankGroup::RankGroup(int descriptor, int rank, int size, int64_t slot_bytes, double timeout_s)
    : rank_(rank),
      size_(size),
      slot_bytes_(whole_pages(slot_bytes)),
      timeout_s_(timeout_s),
      mapping_(descriptor, file_bytes(size, slot_bytes)),
      header_(*mapping_.at<Header>(0)) {
  int64_t others = 0;
  if (!header_.slot_bytes.compare_exchange_strong(others, slot_bytes_) && others != slot_bytes_) {
    throw std::invalid_argument("others have joined a group of slots of " + std::to_string(others) +
                                " bytes");
  }
  record(rank).participant.join();
  header_.num_joined.fetch_add(1);
}

bool RankGroup::has_all() const { return header_.num_joined.load() == size_; }

RankGroup::Record& RankGroup::record(int rank) const {
  return mapping_.at<Record>(sizeof(Header))[rank];
}

char* RankGroup::slot(int rank, uint32_t generation) const {
  const int64_t first = whole_pages(sizeof(Header) + size_ * sizeof(Record));
  return mapping_.at<char>(first + (2 * rank + generation % 2) * slot_bytes_);
}

void RankGroup::arrive(uint32_t generation) { record(rank_).arrived.advance(generation); }

bool RankGroup::has_arrived(uint32_t generation) const {
  for (int rank = 0; rank < size_; ++rank) {
    if (!record(rank).arrived.has_come_to(generation)) return false;
  }
  return true;
}

void RankGroup::wait(uint32_t generation) {
  check();
  Patience patience(timeout_s_);
  for (int rank = 0; rank < size_; ++rank) {
    Bell& arrived = record(rank).arrived;
    wait_at(
        arrived, [&] { return arrived.has_come_to(generation); },
        [&] { watch(rank, generation, patience); });
  }
}

// While `waited_for` has not arrived.
void RankGroup::watch(int waited_for, uint32_t generation, Patience& patience) {
  check();
  const bool looks = patience.looks();
  for (int rank = 0; rank < size_; ++rank) {
    const Participant& participant = record(rank).participant;
    if (participant.has_left() || (looks && participant.has_died())) {
      // It may have arrived just before.
      if (!record(rank).arrived.has_come_to(generation)) end(End::kLost, rank);
    }
  }
  if (patience.is_over()) end(End::kTimeout, waited_for);
  check();
}

void RankGroup::end(End how, int rank) {
  uint64_t none = 0;
  const uint64_t word = (static_cast<uint64_t>(how) + 1) << 32 | static_cast<uint32_t>(rank);
  header_.end.compare_exchange_strong(none, word);
  for (int each = 0; each < size_; ++each) record(each).arrived.wake();
}

void RankGroup::check() const {
  if (is_closed_.load()) throw Ended(End::kClosed, rank_);
  const uint64_t word = header_.end.load(std::memory_order_acquire);
  if (word) throw Ended(static_cast<End>((word >> 32) - 1), static_cast<int>(word & 0xffffffff));
}

void RankGroup::close() {
  if (is_closed_.exchange(true)) return;
  record(rank_).participant.leave();
  for (int each = 0; each < size_; ++each) record(each).arrived.wake();
}

}  // namespace rtp
