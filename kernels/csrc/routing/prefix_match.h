// How much of a prompt each holder has from its beginning, from dictionaries of Python.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

namespace rtp {

// `held` and `assumed` give integers by hash, in which bit i is the holder at slot i. Writes the
// number of blocks that each has from the beginning of `hashes` to `lengths`, which are zeros.
// Throws ValueError or OverflowError for a bit beyond `num_slots`, TypeError for no integer.
void match_prefix(nanobind::tuple hashes, nanobind::dict held, nanobind::dict assumed,
                  int64_t* lengths, int64_t num_slots);

}  // namespace rtp
