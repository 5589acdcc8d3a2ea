#include "step_ring.h"

#include <algorithm>
#include <cstring>

namespace rtp {
namespace {

constexpr int64_t kPage = 4096;

int64_t whole_pages(int64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

// A wait that is over for want of time, inside the ring.
struct TimeOver {};

}  // namespace

struct StepRing::Header {
  alignas(64) std::atomic<int> num_joined;
};

int64_t StepRing::file_bytes(int num_readers, int64_t ring_bytes) {
  return whole_pages(sizeof(Header) + (1 + num_readers) * sizeof(Side)) + ring_bytes;
}

StepRing::StepRing(int descriptor, int num_readers, int64_t ring_bytes)
    : num_readers_(num_readers),
      ring_bytes_(ring_bytes),
      mapping_(descriptor, file_bytes(num_readers, ring_bytes)) {}

StepRing::Header& StepRing::header() const { return *mapping_.at<Header>(0); }

StepRing::Side* StepRing::side(int index) const {
  return mapping_.at<Side>(sizeof(Header)) + index;
}

void StepRing::join(Side& side) const {
  side.participant.join();
  header().num_joined.fetch_add(1);
}

bool StepRing::has_all() const { return header().num_joined.load() == 1 + num_readers_; }

void StepRing::copy_in(uint64_t position, const char* from, uint64_t bytes) const {
  char* ring = mapping_.at<char>(file_bytes(num_readers_, 0));
  const uint64_t offset = position % size(), first = std::min(bytes, size() - offset);
  std::memcpy(ring + offset, from, first);
  std::memcpy(ring, from + first, bytes - first);
}

void StepRing::copy_out(uint64_t position, char* to, uint64_t bytes) const {
  const char* ring = mapping_.at<char>(file_bytes(num_readers_, 0));
  const uint64_t offset = position % size(), first = std::min(bytes, size() - offset);
  std::memcpy(to, ring + offset, first);
  std::memcpy(to + first, ring, bytes - first);
}

RingWriter::RingWriter(int descriptor, int num_readers, int64_t ring_bytes)
    : ring_(descriptor, num_readers, ring_bytes), next_look_(SteadyClock::now()) {
  ring_.join(ring_.writer());
}

void RingWriter::write(std::string_view message, double timeout_s) {
  if (is_closed_.load()) throw Ended(End::kClosed, kWriter);
  check();
  Patience patience(timeout_s);
  const uint64_t length = message.size();
  try {
    put(reinterpret_cast<const char*>(&length), sizeof length, patience);
    put(message.data(), length, patience);
  } catch (const Ended&) {
    close();  // part of the message may be in the ring
    throw;
  }
  ring_.writer().moved.ring();
}

// What fits at once is not announced before all of the message is there.
void RingWriter::put(const char* from, uint64_t bytes, Patience& patience) {
  std::atomic<uint64_t>& position = ring_.writer().position;
  while (bytes) {
    if (!room()) {
      ring_.writer().moved.ring();
      wait_for_room(patience);
    }
    const uint64_t at = position.load(std::memory_order_relaxed), piece = std::min(bytes, room());
    ring_.copy_in(at, from, piece);
    position.store(at + piece);
    from += piece;
    bytes -= piece;
  }
}

void RingWriter::wait_for_room(Patience& patience) {
  const int reader = slowest();
  StepRing::Side& side = ring_.reader(reader);
  const auto has_room = [&] { return slowest() != reader || room() > 0; };
  wait_at(side.moved, has_room, [&] {
    if (is_closed_.load()) throw Ended(End::kClosed, kWriter);
    if (side.participant.has_left()) throw Ended(End::kLost, reader);
    if (patience.looks()) {
      next_look_ = SteadyClock::now();
      check();
    }
    if (patience.is_over()) throw Ended(End::kTimeout, reader);
  });
}

void RingWriter::check() {
  const auto now = SteadyClock::now();
  const bool looks = now >= next_look_;
  if (looks) next_look_ = now + kNap;
  for (int reader = 0; reader < ring_.num_readers(); ++reader) {
    const Participant& participant = ring_.reader(reader).participant;
    if (participant.has_left() || (looks && participant.has_died())) {
      throw Ended(End::kLost, reader);
    }
  }
}

int RingWriter::slowest() const {
  int found = 0;
  for (int reader = 1; reader < ring_.num_readers(); ++reader) {
    if (ring_.reader(reader).position.load() < ring_.reader(found).position.load()) found = reader;
  }
  return found;
}

uint64_t RingWriter::room() const {
  const uint64_t written = ring_.writer().position.load(std::memory_order_relaxed);
  return ring_.size() - (written - ring_.reader(slowest()).position.load());
}

void RingWriter::close() {
  if (is_closed_.exchange(true)) return;
  ring_.writer().participant.leave();
  ring_.writer().moved.ring();
  // For a thread of this process that waits for room.
  for (int reader = 0; reader < ring_.num_readers(); ++reader) ring_.reader(reader).moved.wake();
}

RingReader::RingReader(int descriptor, int reader, int num_readers, int64_t ring_bytes)
    : ring_(descriptor, num_readers, ring_bytes), reader_(reader) {
  ring_.join(ring_.reader(reader));
}

bool RingReader::read(std::string& message, double timeout_s) {
  Patience patience(timeout_s);
  char* length = reinterpret_cast<char*>(&length_);
  if (length_taken_ < sizeof length_) {
    if (!take(length, sizeof length_, length_taken_, patience)) return false;
    message_.resize(length_);
  }
  if (!take(message_.data(), length_, taken_, patience)) return false;
  message.swap(message_);
  length_taken_ = taken_ = 0;
  return true;
}

// Adds to the first `taken` of `bytes`; false if they are not all there in time.
bool RingReader::take(char* to, uint64_t bytes, uint64_t& taken, Patience& patience) {
  StepRing::Side& self = ring_.reader(reader_);
  while (taken < bytes) {
    if (!wait_for_bytes(patience)) return false;
    const uint64_t at = self.position.load(std::memory_order_relaxed);
    const uint64_t piece = std::min(bytes - taken, ring_.writer().position.load() - at);
    ring_.copy_out(at, to + taken, piece);
    taken += piece;
    self.position.store(at + piece);
    self.moved.ring();
  }
  return true;
}

bool RingReader::wait_for_bytes(Patience& patience) {
  StepRing::Side& writer = ring_.writer();
  const uint64_t own = ring_.reader(reader_).position.load(std::memory_order_relaxed);
  const auto has_bytes = [&] { return writer.position.load() != own; };
  try {
    wait_at(writer.moved, has_bytes, [&] {
      if (is_closed_.load()) throw Ended(End::kClosed, reader_);
      const bool has_left = writer.participant.has_left();
      const bool is_lost = has_left || (patience.looks() && writer.participant.has_died());
      // It may have written just before.
      if (is_lost && !has_bytes()) throw Ended(has_left ? End::kClosed : End::kLost, kWriter);
      if (patience.is_over()) throw TimeOver();
    });
  } catch (const TimeOver&) {
    return false;
  }
  return true;
}

void RingReader::close() {
  if (is_closed_.exchange(true)) return;
  ring_.reader(reader_).participant.leave();
  ring_.reader(reader_).moved.ring();
  ring_.writer().moved.wake();  // for a thread of this process that waits
}

}  // namespace rtp
