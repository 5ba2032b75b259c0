// Signed sums for the levels without vectors: a table of all 16 sums in memory.

template <typename T>
struct Lookup {
  struct Signs {
    Word words[kBlock];
  };
  static constexpr int kRows = 1;
  static constexpr int64_t kTableSize = 16;
  static constexpr int blocks(int) { return 1; }

  static inline void make_table(T x0, T x1, T x2, T x3, T* table) {
    for (int bits = 0; bits < 16; ++bits) {
      const T sum = (bits & 1 ? x0 : -x0) + (bits & 2 ? x1 : -x1);
      table[bits] = (sum + (bits & 4 ? x2 : -x2)) + (bits & 8 ? x3 : -x3);
    }
  }
  static inline const T* load_table(const T* table) { return table; }
  static inline Signs load_signs(const Word* words) {
    Signs signs;
    for (int lane = 0; lane < kBlock; ++lane) signs.words[lane] = words[lane];
    return signs;
  }
  static inline Signs next(Signs signs) {
    for (Word& word : signs.words) word >>= 4;
    return signs;
  }

  inline void clear() {
    for (T& sum : lanes) sum = 0;
  }
  inline void load(const T* sums) {
    for (int lane = 0; lane < kBlock; ++lane) lanes[lane] = sums[lane];
  }
  inline void store(T* sums) const {
    for (int lane = 0; lane < kBlock; ++lane) sums[lane] = lanes[lane];
  }
  inline void add(const T* table, const Signs& signs) {
    for (int lane = 0; lane < kBlock; ++lane) lanes[lane] += table[signs.words[lane] & 15];
  }

  T lanes[kBlock];
};
