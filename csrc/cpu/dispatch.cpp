// Which CPU level runs: chosen once at load, changed only by the test hook.
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "cpu/kernels.h"

namespace bnn_ext::cpu {
namespace {

#if defined(__x86_64__)
// Asked of the CPU itself: not every compiler knows the name in __builtin_cpu_supports.
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

// The levels that this CPU and its operating system run, slowest first.
std::vector<const Kernels*> supported() {
  std::vector<const Kernels*> levels = {&kKernelsGeneric};
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool popcnt = __builtin_cpu_supports("popcnt");
  const bool avx512 = popcnt && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (popcnt) levels.push_back(&kKernelsPopcnt);
  const bool avx2 = popcnt && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && has_f16c()) levels.push_back(&kKernelsAvx2);
  if (avx512) levels.push_back(&kKernelsAvx512);
  if (avx512 && __builtin_cpu_supports("avx512vpopcntdq")) {
    // Carry-save addition is logic of three inputs. Zen 4 pays two instructions for one of them and
    // is slower with it: 870 GMAC/s instead of 1,260. Intel's CPUs should pay one: there this order
    // comes from counting instructions, not from a measurement.
    const bool intel = __builtin_cpu_is("intel");
    levels.push_back(intel ? &kKernelsAvx512Vpopcnt : &kKernelsAvx512VpopcntCsa);
    levels.push_back(intel ? &kKernelsAvx512VpopcntCsa : &kKernelsAvx512Vpopcnt);
  }
#endif
  return levels;
}

const Kernels* find(const std::string& name, const char* where) {
  std::string choices;
  for (const Kernels* level : supported()) {
    if (name == level->name) return level;
    choices += choices.empty() ? level->name : std::string(", ") + level->name;
  }
  throw std::invalid_argument(std::string(where) + " must be a level that this CPU runs (" +
                              choices + "), found '" + name + "'");
}

const Kernels* initial() {
  const char* forced = std::getenv("BNN_EXT_CPU_CAPABILITY");
  if (forced && *forced) return find(forced, "BNN_EXT_CPU_CAPABILITY");
  return supported().back();
}

std::atomic<const Kernels*>& active() {
  static std::atomic<const Kernels*> level{initial()};
  return level;
}

}  // namespace

const Kernels& kernels() { return *active().load(std::memory_order_relaxed); }

std::vector<std::string> supported_levels() {
  std::vector<std::string> names;
  for (const Kernels* level : supported()) names.emplace_back(level->name);
  return names;
}

void set_level(const std::string& name) { active().store(find(name, "name")); }

}  // namespace bnn_ext::cpu
