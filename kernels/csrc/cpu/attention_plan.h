// How attention's work is cut for threads. Changes who computes what, never what is computed.
#pragma once

#include "attention.h"

namespace rtp {

// Plans and runs `op` with the calling thread's number of OpenMP threads.
void paged_attention(const PagedAttention& op);

}  // namespace rtp
