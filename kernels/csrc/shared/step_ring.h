// Messages from one process to several, through a ring of bytes. Every reader gets every message;
// the writer waits for the slowest. A message longer than the ring goes through it in pieces.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "bell.h"
#include "ended.h"
#include "mapping.h"
#include "participant.h"
#include "patience.h"

namespace rtp {

// The memory, as both sides see it.
class StepRing {
 public:
  static int64_t file_bytes(int num_readers, int64_t ring_bytes);

  StepRing(int descriptor, int num_readers, int64_t ring_bytes);

  struct Side {
    Participant participant;
    alignas(64) std::atomic<uint64_t> position;  // bytes written or read since the beginning
    Bell moved;
  };

  Side& writer() const { return *side(0); }
  Side& reader(int index) const { return *side(1 + index); }
  int num_readers() const { return num_readers_; }
  uint64_t size() const { return static_cast<uint64_t>(ring_bytes_); }

  void join(Side& side) const;
  bool has_all() const;

  // `bytes` at `position` of the stream; at most the ring's size.
  void copy_in(uint64_t position, const char* from, uint64_t bytes) const;
  void copy_out(uint64_t position, char* to, uint64_t bytes) const;

 private:
  struct Header;

  Side* side(int index) const;
  Header& header() const;

  const int num_readers_;
  const int64_t ring_bytes_;
  const Mapping mapping_;
};

class RingWriter {
 public:
  RingWriter(int descriptor, int num_readers, int64_t ring_bytes);
  ~RingWriter() { close(); }

  bool has_all() const { return ring_.has_all(); }

  // Returns when all of it is in the ring. Throws Ended: a reader is lost or does not read for so
  // long; after that the ring is closed.
  void write(std::string_view message, double timeout_s);

  // Throws Ended if a reader is lost.
  void check();

  // Readers read what is there, and then hear of it.
  void close();

 private:
  void put(const char* from, uint64_t bytes, Patience& patience);
  void wait_for_room(Patience& patience);
  uint64_t room() const;
  int slowest() const;

  const StepRing ring_;
  std::atomic<bool> is_closed_{false};
  SteadyClock::time_point next_look_;
};

class RingReader {
 public:
  RingReader(int descriptor, int reader, int num_readers, int64_t ring_bytes);
  ~RingReader() { close(); }

  bool has_all() const { return ring_.has_all(); }

  // The next message, or false if none is complete after so long: what has come of it is kept.
  // Throws Ended: the writer is lost or has closed the ring, and everything has been read.
  bool read(std::string& message, double timeout_s);

  // The writer loses this reader where it waits for it.
  void close();

 private:
  bool take(char* to, uint64_t bytes, uint64_t& taken, Patience& patience);
  bool wait_for_bytes(Patience& patience);

  const StepRing ring_;
  const int reader_;
  std::atomic<bool> is_closed_{false};
  // Of the message that is being read.
  uint64_t length_ = 0, length_taken_ = 0, taken_ = 0;
  std::string message_;
};

}  // namespace rtp
