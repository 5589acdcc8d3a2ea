// Instruction sets: one source, several compilations, one choice at run time.
//
// A kernel source is compiled once a level with RTP_ISA_NAMESPACE set to the level's name and
// RTP_ISA_<level> defined. Its header declares the entry points with RTP_PER_ISA, callers pick one
// with RTP_DISPATCH. Everything else a kernel source defines or includes from our own headers is in
// that namespace too, and it uses no inline function of the standard library that could stay out
// of line: the linker would keep one copy of it, of any level, for all levels.
#pragma once

#include <string>
#include <vector>

namespace rtp {

// Ascending: each level implies those before it. kAvx512Bf16 is VNNI and VBMI as well.
enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Bf16, kAmx };

// The level in use: until set_isa chose another, the CPU's fastest, which is a function of its
// kind.
Isa isa();

// "portable", "avx2", "avx512", "avx512bf16", "amx".
std::string isa_name();

// The levels this build and this CPU have, ascending.
std::vector<std::string> supported_isas();

// Throws std::invalid_argument if `name` is not one of supported_isas().
void set_isa(const std::string& name);

}  // namespace rtp

// What the level that a source is compiled for has.
#if defined(RTP_ISA_amx)
#define RTP_HAS_AMX 1
#endif
#if defined(RTP_ISA_amx) || defined(RTP_ISA_avx512bf16)
#define RTP_HAS_AVX512_BF16 1
#endif
#if defined(RTP_HAS_AVX512_BF16) || defined(RTP_ISA_avx512)
#define RTP_HAS_AVX512 1
#endif

#if defined(__x86_64__)
#define RTP_PER_ISA(...)      \
  namespace rtp::portable {   \
  __VA_ARGS__                 \
  }                           \
  namespace rtp::avx2 {       \
  __VA_ARGS__                 \
  }                           \
  namespace rtp::avx512 {     \
  __VA_ARGS__                 \
  }                           \
  namespace rtp::avx512bf16 { \
  __VA_ARGS__                 \
  }                           \
  namespace rtp::amx {        \
  __VA_ARGS__                 \
  }
#define RTP_DISPATCH(name)                                              \
  (::rtp::isa() == ::rtp::Isa::kAmx          ? &::rtp::amx::name        \
   : ::rtp::isa() == ::rtp::Isa::kAvx512Bf16 ? &::rtp::avx512bf16::name \
   : ::rtp::isa() == ::rtp::Isa::kAvx512     ? &::rtp::avx512::name     \
   : ::rtp::isa() == ::rtp::Isa::kAvx2       ? &::rtp::avx2::name       \
                                             : &::rtp::portable::name)
#else
#define RTP_PER_ISA(...)    \
  namespace rtp::portable { \
  __VA_ARGS__               \
  }
#define RTP_DISPATCH(name) (&::rtp::portable::name)
#endif
