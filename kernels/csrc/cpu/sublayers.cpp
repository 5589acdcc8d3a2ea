// A run of sublayers in places of their own, which come round again.
#include <algorithm>
#include <cstring>
#include <optional>
#include <stdexcept>

#include "scratch.h"
#include "sublayer.h"

namespace rtp {
namespace {

// Of all places. With few tokens every sublayer has one of its own, so that a thread may be late by
// a whole step; with many there are two, and threads wait for each other between sublayers.
constexpr int64_t kPlacesBytes = 8 << 20;

// Where each sublayer of a run reads and stores: the first reads a copy of the residual, the last
// stores into it.
class Places {
 public:
  Places(const std::vector<const Sublayer*>& sublayers, const Step& step, void* residual)
      : num_sublayers_(static_cast<int>(sublayers.size())), residual_(residual) {
    const int64_t bytes = step.num_tokens * step.hidden_size * (step.dtype == DType::kBf16 ? 2 : 4);
    stream_bytes_ = (bytes + 63) / 64 * 64;
    int64_t workspace_bytes = 0, num_kept = 0;
    for (const Sublayer* sublayer : sublayers) {
      workspace_bytes = std::max(workspace_bytes, sublayer->workspace_bytes(step));
      kept_starts_.push_back(num_kept);
      num_kept += sublayer->num_kept();
    }
    place_bytes_ = stream_bytes_ + workspace_bytes;
    const int64_t fitting = kPlacesBytes / std::max<int64_t>(1, place_bytes_);
    count_ = static_cast<int>(std::clamp<int64_t>(fitting, 2, std::max(2, num_sublayers_)));
    const int64_t places_bytes = stream_bytes_ + count_ * place_bytes_;
    const int64_t kept_bytes = num_kept * static_cast<int64_t>(sizeof(int32_t));
    first_ = call_memory(places_bytes + (kept_bytes + 63) / 64 * 64);
    kept_ = reinterpret_cast<int32_t*>(first_ + places_bytes);
    std::memcpy(first_, residual, bytes);
  }

  int count() const { return count_; }

  Place of(int index) const {
    return {index == 0 ? first_ : stream(index - 1),
            index + 1 == num_sublayers_ ? residual_ : stream(index), stream(index) + stream_bytes_,
            kept(index)};
  }

  int32_t* kept(int index) const { return kept_ + kept_starts_[index]; }

 private:
  char* stream(int index) const { return first_ + stream_bytes_ + index % count_ * place_bytes_; }

  const int num_sublayers_;
  void* const residual_;
  int64_t stream_bytes_, place_bytes_;
  int count_;
  char* first_;
  int32_t* kept_;
  std::vector<int64_t> kept_starts_;  // by sublayer
};

// Of the sublayers' sums, if a group makes them.
class Sums {
 public:
  Sums(const std::vector<const Sublayer*>& sublayers, const Step& step) {
    RankGroup* group = nullptr;
    int count = 0;
    for (const Sublayer* sublayer : sublayers) {
      numbers_.push_back(count);
      if (!sublayer->group()) continue;
      if (group && group != sublayer->group()) {
        throw std::invalid_argument("run_sublayers: sublayers of several groups");
      }
      group = sublayer->group();
      ++count;
    }
    if (group && step.num_tokens) {
      exchange_.emplace(*group, count, step.num_tokens, step.hidden_size);
    }
  }

  // A sublayer takes as many as its sum has pieces.
  int stages_per_sublayer() const { return exchange_ ? exchange_->num_pieces() : 1; }

  Place with_sum(Place place, const Sublayer& sublayer, int index) {
    if (!exchange_ || !sublayer.group()) return place;
    place.exchange = &*exchange_;
    place.sum = numbers_[index];
    place.stage = index * stages_per_sublayer();
    return place;
  }

  bool has_ended() const { return exchange_ && exchange_->has_ended(); }
  void check() const {
    if (exchange_) exchange_->check();
  }

 private:
  std::vector<int> numbers_;
  std::optional<RankExchange> exchange_;
};

}  // namespace

void run_sublayers(const std::vector<const Sublayer*>& sublayers, const Step& step,
                   void* residual) {
  const Places places(sublayers, step, residual);
  Sums sums(sublayers, step);
  const int count = static_cast<int>(sublayers.size()), stages = sums.stages_per_sublayer();
  run_team(true, [&](const Member& member) {
    for (int i = 0; i < count; ++i) {
      const Place place = sums.with_sum(places.of(i), *sublayers[i], i);
      // The place is that of sublayer i - count of places, and the one after that reads from it.
      int others = (i - places.count() + 2) * stages;
      if (place.exchange) {
        others = std::max(others, place.exchange->needed(place.stage, place.sum, 0));
      }
      member.come_to(i * stages, others);
      const Ahead next = i + 1 < count ? sublayers[i + 1]->first_reads(step, member) : Ahead{};
      sublayers[i]->run(step, place, member, next);
      if (sums.has_ended()) return member.leave();
    }
  });
  sums.check();
  for (int i = 0; i < count; ++i) sublayers[i]->finish(places.kept(i));
}

void write_cache(const Sublayer& sublayer, const Step& step, const void* residual) {
  Place place{};
  place.residual = residual;
  place.workspace = call_memory(sublayer.workspace_bytes(step));
  run_team(true, [&](const Member& member) { sublayer.write_cache(step, place, member); });
}

}  // namespace rtp
