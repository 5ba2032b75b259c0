// What one CPU level offers: raw pointers in, raw pointers out, no tensors, no threads.
#pragma once

#include <string>
#include <vector>

#include "cpu/dot_kernels.h"
#include "cpu/epilogue_kernels.h"
#include "cpu/pack_kernels.h"
#include "cpu/pool_kernels.h"
#include "cpu/real_kernels.h"
#include "cpu/select_kernels.h"
#include "cpu/sign_kernels.h"

namespace bnn_ext::cpu {

struct Kernels {
  const char* name;
  DotKernels dot;
  EpilogueKernels epilogue;
  PackKernels pack;
  RealKernels real;
  SelectKernels select;
  PoolKernels pool;
  SignKernels sign;
};

extern const Kernels kKernelsGeneric;
#if defined(__x86_64__)
extern const Kernels kKernelsPopcnt;
extern const Kernels kKernelsAvx2;
extern const Kernels kKernelsAvx512;
extern const Kernels kKernelsAvx512Vpopcnt;
extern const Kernels kKernelsAvx512VpopcntCsa;
#endif

// dispatch.cpp: the level in use, chosen once: the best that this CPU runs, or the one that the
// environment variable BNN_EXT_CPU_CAPABILITY names.
const Kernels& kernels();
std::vector<std::string> supported_levels();  // slowest first
void set_level(const std::string& name);      // throws std::invalid_argument

}  // namespace bnn_ext::cpu
