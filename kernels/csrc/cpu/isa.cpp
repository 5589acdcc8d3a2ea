#include "isa.h"

#include <atomic>
#include <stdexcept>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace rtp {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512bf16", "amx"};

// Linux gives tile registers to a process that asks for them, once for all of its threads.
bool may_use_tiles() {
#if defined(__linux__) && defined(__x86_64__)
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;               // the state's number in XCR0
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

Isa find_best_isa() {
#if defined(__x86_64__)
  // The compiler's checks include whether the operating system saves the registers.
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::kPortable;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    return Isa::kAvx2;
  }
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vnni") ||
      !__builtin_cpu_supports("avx512vbmi") || !__builtin_cpu_supports("avx512vbmi2")) {
    return Isa::kAvx512;
  }
  const bool has_tiles =
      __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") && may_use_tiles();
  return has_tiles ? Isa::kAmx : Isa::kAvx512Bf16;
#else
  return Isa::kPortable;
#endif
}

Isa best_isa() {
  static const Isa best = find_best_isa();
  return best;
}

// Intel's cores start a VDPBF16PS every two cycles (measured on Emerald Rapids) and two FMAs a
// cycle: twice the products a cycle without AVX512-BF16. AMD's Zen 4 starts one a cycle, twice its
// FMA.
Isa fastest_isa() {
  const Isa best = best_isa();
#if defined(__x86_64__)
  if (best == Isa::kAvx512Bf16 && __builtin_cpu_is("intel")) return Isa::kAvx512;
#endif
  return best;
}

std::atomic<Isa>& active_isa() {
  static std::atomic<Isa> active{fastest_isa()};
  return active;
}

}  // namespace

Isa isa() { return active_isa().load(std::memory_order_relaxed); }

std::string isa_name() { return kNames[static_cast<int>(isa())]; }

std::vector<std::string> supported_isas() {
  return {kNames, kNames + static_cast<int>(best_isa()) + 1};
}

void set_isa(const std::string& name) {
  std::string supported;
  for (int level = 0; level <= static_cast<int>(best_isa()); ++level) {
    if (name == kNames[level]) {
      active_isa().store(static_cast<Isa>(level));
      return;
    }
    supported += (level ? ", " : "") + std::string(kNames[level]);
  }
  throw std::invalid_argument("instruction set '" + name +
                              "' is not available; this CPU has: " + supported);
}

}  // namespace rtp
