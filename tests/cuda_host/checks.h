// What the test programs share: comparisons that end the program, random inputs, packing.
#pragma once

#include <cstdlib>
#include <iostream>
#include <random>
#include <string>
#include <vector>

#include "common/bits.h"

namespace bnn_ext::checks {

inline void check_equal(const char* what, int64_t found, int64_t expected) {
  if (found == expected) return;
  std::cout << what << " is " << found << ", expected " << expected << std::endl;
  std::exit(1);
}

template <typename T>
void check_equal(const std::string& what, const std::vector<T>& found,
                 const std::vector<T>& expected) {
  check_equal((what + ".size()").c_str(), found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i)
    if (found[i] != expected[i])
      check_equal((what + "[" + std::to_string(i) + "]").c_str(), found[i], expected[i]);
}

inline std::mt19937 generator(1);

inline int64_t pick(int64_t least, int64_t most) {
  return std::uniform_int_distribution<int64_t>(least, most)(generator);
}

inline int64_t pick(const std::vector<int64_t>& choices) {
  return choices[pick(0, static_cast<int64_t>(choices.size()) - 1)];
}

inline std::vector<int> random_signs(int64_t count) {
  std::vector<int> signs(count);
  for (int& sign : signs) sign = pick(0, 1) ? 1 : -1;
  return signs;
}

// ±1 [rows][channels] -> words, written one bit at a time.
inline std::vector<Word> packed(const std::vector<int>& signs, int64_t channels) {
  const int64_t words = (channels + 31) / 32;
  const int64_t rows = static_cast<int64_t>(signs.size()) / channels;
  std::vector<Word> result(rows * words, 0);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t c = 0; c < channels; ++c)
      if (signs[row * channels + c] > 0) result[row * words + c / 32] |= Word{1} << (c % 32);
  return result;
}

}  // namespace bnn_ext::checks
