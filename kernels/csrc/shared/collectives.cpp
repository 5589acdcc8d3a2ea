#include "collectives.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "../cpu/rank_sum.h"

namespace rtp {
namespace {

// Arrives with what `store` puts into this rank's slot; everybody's slots are complete then.
template <typename Store>
uint32_t exchange(RankGroup& group, const Store& store) {
  const uint32_t generation = group.begin();
  store(group.slot(group.rank(), generation));
  group.arrive(generation);
  group.wait(generation);
  return generation;
}

}  // namespace

void barrier(RankGroup& group) {
  exchange(group, [](char*) {});
}

void all_reduce(RankGroup& group, void* x, int64_t count, DType dtype) {
  const int64_t itemsize = dtype == DType::kBf16 ? 2 : 4, step = group.slot_bytes() / itemsize;
  for (int64_t first = 0; first < count; first += step) {
    const int64_t size = std::min(step, count - first);
    char* piece = static_cast<char*>(x) + first * itemsize;
    const uint32_t generation =
        exchange(group, [&](char* slot) { std::memcpy(slot, piece, size * itemsize); });
    RankSum sum{};
    sum.dtype = sum.out_dtype = dtype;
    sum.num_ranks = group.size();
    for (int rank = 0; rank < group.size(); ++rank) sum.parts[rank] = group.slot(rank, generation);
    sum.out = piece;
    RTP_DISPATCH(rank_sum)(sum, 0, size);
  }
}

void all_gather(RankGroup& group, void* out, const void* x, int64_t bytes) {
  for (int64_t first = 0; first < bytes; first += group.slot_bytes()) {
    const int64_t size = std::min(group.slot_bytes(), bytes - first);
    const uint32_t generation = exchange(
        group, [&](char* slot) { std::memcpy(slot, static_cast<const char*>(x) + first, size); });
    for (int rank = 0; rank < group.size(); ++rank) {
      std::memcpy(static_cast<char*>(out) + rank * bytes + first, group.slot(rank, generation),
                  size);
    }
  }
}

void broadcast(RankGroup& group, void* x, int64_t bytes, int root) {
  for (int64_t first = 0; first < bytes; first += group.slot_bytes()) {
    const int64_t size = std::min(group.slot_bytes(), bytes - first);
    char* piece = static_cast<char*>(x) + first;
    const uint32_t generation = exchange(group, [&](char* slot) {
      if (group.rank() == root) std::memcpy(slot, piece, size);
    });
    if (group.rank() != root) std::memcpy(piece, group.slot(root, generation), size);
  }
}

AllToAll::AllToAll(RankGroup& group, const void* rows, int64_t row_bytes,
                   std::vector<int64_t> counts)
    : group_(group),
      rows_(static_cast<const char*>(rows)),
      row_bytes_(row_bytes),
      own_counts_(std::move(counts)) {
  if (static_cast<int>(own_counts_.size()) != group.size()) {
    throw std::invalid_argument("all_to_all: there must be a count for each rank");
  }
  sent_.resize(group.size() * group.size());
  std::copy(own_counts_.begin(), own_counts_.end(), sent_.begin() + group.rank() * group.size());
  send_piece(0);
  for (int from = 0; from < group.size(); ++from) {
    std::memcpy(&sent_[from * group.size()], group.slot(from, generation_),
                group.size() * sizeof(int64_t));
  }
}

std::vector<int64_t> AllToAll::counts() const {
  std::vector<int64_t> found;
  for (int from = 0; from < group_.size(); ++from) found.push_back(sent_rows(from, group_.rank()));
  return found;
}

// Of rows in the first slot, where the counts come before them.
int64_t AllToAll::first_bytes() const {
  return group_.slot_bytes() - group_.size() * static_cast<int64_t>(sizeof(int64_t));
}

int64_t AllToAll::sent_bytes(int from) const {
  int64_t rows = 0;
  for (int to = 0; to < group_.size(); ++to) rows += sent_rows(from, to);
  return rows * row_bytes_;
}

void AllToAll::send_piece(int64_t round) {
  const int64_t all = sent_bytes(group_.rank());
  const int64_t begin = round ? first_bytes() + (round - 1) * group_.slot_bytes() : 0;
  const int64_t size =
      std::clamp<int64_t>(all - begin, 0, round ? group_.slot_bytes() : first_bytes());
  generation_ = exchange(group_, [&](char* slot) {
    if (round == 0) {
      std::memcpy(slot, own_counts_.data(), own_counts_.size() * sizeof(int64_t));
      slot += own_counts_.size() * sizeof(int64_t);
    }
    if (size) std::memcpy(slot, rows_ + begin, size);
  });
}

void AllToAll::receive(void* out) {
  int64_t most = 0;
  for (int from = 0; from < group_.size(); ++from) most = std::max(most, sent_bytes(from));
  const int64_t left = std::max<int64_t>(0, most - first_bytes());
  const int64_t rounds = 1 + (left + group_.slot_bytes() - 1) / group_.slot_bytes();
  for (int64_t round = 0; round < rounds; ++round) {
    if (round) send_piece(round);
    take_pieces(round, static_cast<char*>(out));
  }
}

// Of every rank's rows those for this one, as far as this round's slots have them.
void AllToAll::take_pieces(int64_t round, char* out) const {
  const int64_t begin = round ? first_bytes() + (round - 1) * group_.slot_bytes() : 0;
  const int64_t end = begin + (round ? group_.slot_bytes() : first_bytes());
  for (int from = 0; from < group_.size(); ++from) {
    const char* slot = group_.slot(from, generation_);
    if (round == 0) slot += group_.size() * sizeof(int64_t);
    int64_t wanted = 0;
    for (int to = 0; to < group_.rank(); ++to) wanted += sent_rows(from, to) * row_bytes_;
    const int64_t wanted_bytes = sent_rows(from, group_.rank()) * row_bytes_;
    const int64_t first = std::max(begin, wanted), last = std::min(end, wanted + wanted_bytes);
    if (first < last) std::memcpy(out + (first - wanted), slot + (first - begin), last - first);
    out += wanted_bytes;
  }
}

}  // namespace rtp
