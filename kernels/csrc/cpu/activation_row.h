// The gated MLP's activation of one row.
#pragma once

#include "vec.h"

namespace rtp::RTP_ISA_NAMESPACE {

RTP_INLINE VecF gated(VecF gate, VecF up) {
#if defined(RTP_HAS_AMX)
  // A division takes as long as a dozen products. Beyond 2^126 its reciprocal would be subnormal.
  const VecF exponent = gate * set1(-1.44269504f);
  const __mmask16 kept = _mm512_cmp_ps_mask(exponent, set1(126.0f), _CMP_NGT_UQ);
  const VecF decay = exp2(min(set1(126.0f), exponent));
  return _mm512_maskz_mul_ps(kept, gate * reciprocal(set1(1.0f) + decay), up);
#else
  const VecF decay = exp2(min(set1(200.0f), gate * set1(-1.44269504f)));
  return gate / (set1(1.0f) + decay) * up;
#endif
}

// silu(gate) * up, rounded to T; `out` may hold it as floats.
template <typename T, typename Out>
RTP_INLINE void gate_row(Out* out, const T* gate, const T* up, int64_t d) {
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) {
    store_as<T>(out + i, gated(load(gate + i), load(up + i)));
  }
  if (const int rest = static_cast<int>(d - i)) {
    const VecF last = gated(load_first(gate + i, rest), load_first(up + i, rest));
    store_first_as<T>(out + i, last, rest);
  }
}

}  // namespace rtp::RTP_ISA_NAMESPACE
