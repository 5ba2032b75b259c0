// Regions of a file that are compiled for one instruction set, whatever the compiler's flags are.
// Everything included before a region keeps the baseline, so no inline function of a shared header
// can carry vector code into another object.
#pragma once

#define BNN_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define BNN_TARGET_BEGIN(isa) \
  BNN_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define BNN_TARGET_END _Pragma("clang attribute pop")
#else
#define BNN_TARGET_BEGIN(isa) _Pragma("GCC push_options") BNN_PRAGMA(GCC target(isa))
#define BNN_TARGET_END _Pragma("GCC pop_options")
#endif
