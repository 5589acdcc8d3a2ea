// Plain strips of bf16 weights into coded ones (coded_strip.h), and rows out of these.
#pragma once

#include "coded_strip.h"

namespace rtp {

// Escapes that each strip of a plain weight has.
void count_escapes(int64_t* counts, const PackedMatrix& plain, const Member& member);

// `out` has coded_strip_bytes() a strip; strip i's escapes are from first[i] on.
void code_strips(uint8_t* out, bf16* escapes, const int64_t* first, const PackedMatrix& plain,
                 const Member& member);

// Row `row` [k] of the unpacked weight.
void gather_coded_row(bf16* out, const PackedMatrix& weight, int64_t row);

}  // namespace rtp
