// The largest logit of each row, by the bits that a product of all of them would have.
#pragma once

#include "screen.h"

namespace rtp {

// token_ids[i] is row i's first largest logit, or kNoToken; `head` is the product that makes the
// logits (its `out` is not used), with the RMS norm before it. `screen` is of its weight, or null:
// where it helps, only those strips of outputs are computed that it does not rule out. Returns how
// many that were.
int64_t greedy(int32_t* token_ids, const Linear& head, const Screen* screen);

}  // namespace rtp
