// Signs in training of one CPU level; included like dot_body.inl. The compiler makes vectors of
// these loops: a branch would be taken as good as at random.

void sign(const float* __restrict x, int64_t count, float* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = x[i] >= 0 ? 1.0f : -1.0f;
}

constexpr int64_t kCounters = kDrawn / 4;  // each gives four words

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", 2011)
// at counters in a row: word w of counter c is drawn[w][c].
void philox(uint64_t counter, uint64_t seed, uint32_t (&drawn)[4][kCounters]) {
  for (int64_t c = 0; c < kCounters; ++c) {
    drawn[0][c] = static_cast<uint32_t>(counter + c);
    drawn[1][c] = static_cast<uint32_t>((counter + c) >> 32);
    drawn[2][c] = drawn[3][c] = 0;
  }
  uint32_t low_key = static_cast<uint32_t>(seed), high_key = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round, low_key += 0x9e3779b9u, high_key += 0xbb67ae85u)
    for (int64_t c = 0; c < kCounters; ++c) {
      const uint64_t a = uint64_t{0xd2511f53u} * drawn[0][c];
      const uint64_t b = uint64_t{0xcd9e8d57u} * drawn[2][c];
      drawn[0][c] = static_cast<uint32_t>(b >> 32) ^ drawn[1][c] ^ low_key;
      drawn[1][c] = static_cast<uint32_t>(b);
      drawn[2][c] = static_cast<uint32_t>(a >> 32) ^ drawn[3][c] ^ high_key;
      drawn[3][c] = static_cast<uint32_t>(a);
    }
}

void draw(const float* __restrict x, int64_t first, int64_t count, uint64_t seed,
          float* __restrict out) {
  for (int64_t i = 0; i < count; i += kDrawn) {
    uint32_t drawn[4][kCounters];
    philox(static_cast<uint64_t>(first + i) / 4, seed, drawn);
    for (int64_t word = 0, from = i; word < 4; ++word, from += kCounters) {
      const int64_t n = count - from < kCounters ? count - from : kCounters;
      for (int64_t c = 0; c < n; ++c) {
        const auto bits = static_cast<int32_t>(drawn[word][c] >> 8);
        const float threshold = static_cast<float>(bits) * 0x1p-23f - 1;
        out[from + c] = x[from + c] > threshold ? 1.0f : -1.0f;
      }
    }
  }
}

void straight_through(const float* __restrict x, const float* __restrict grad, int64_t count,
                      float* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = __builtin_fabsf(x[i]) <= 1 ? grad[i] : 0.0f;
}

void piecewise_quadratic(const float* __restrict x, const float* __restrict grad, int64_t count,
                         float* __restrict out) {
  for (int64_t i = 0; i < count; ++i) {
    const float magnitude = __builtin_fabsf(x[i]);
    const float product = grad[i] * (2 - 2 * magnitude);
    out[i] = magnitude < 1 ? product : 0.0f;
  }
}

constexpr SignKernels kSignKernels = {sign, draw, straight_through, piecewise_quadratic};
