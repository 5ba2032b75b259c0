// Pools of real maps of one CPU level; included like dot_body.inl, after epilogue_body.inl.

struct Maximum {
  template <typename Vector>
  Vector start() const {
    return Vector{} - __builtin_inff();
  }
  template <typename Vector>
  Vector join(Vector best, Vector value) const {
    return (value > best) | (value != value) ? value : best;  // NaN differs from itself
  }
  template <typename Vector>
  Vector finish(Vector best) const {
    return best;
  }
};

struct Average {
  float divisor;

  template <typename Vector>
  Vector start() const {
    return Vector{};
  }
  template <typename Vector>
  Vector join(Vector sum, Vector value) const {
    return sum + value;
  }
  template <typename Vector>
  Vector finish(Vector sum) const {
    return sum / divisor;
  }
};

// `kVectors` vectors of neighbouring channels, which stay in registers; a vector may be one float.
template <typename Vector, int kVectors, typename Pooling>
inline void pool_channels(const Pooling& pooling, const Window& window, int64_t channel,
                          float* out) {
  constexpr int64_t kWidth = sizeof(Vector) / sizeof(float);
  Vector pooled[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) pooled[v] = pooling.template start<Vector>();
  for (int64_t row = 0; row < window.rows; ++row) {
    const float* pixel = window.first + row * window.row_step + channel;
    for (int64_t column = 0; column < window.columns; ++column, pixel += window.column_step)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v)
        pooled[v] = pooling.join(pooled[v], load_vector<Vector>(pixel + v * kWidth));
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v)
    store_vector(out + channel + v * kWidth, pooling.finish(pooled[v]));
}

template <typename Pooling>
inline void pool_window(const Pooling& pooling, const Window& window, int64_t channels,
                        float* out) {
  int64_t channel = 0;
  for (; channel + 8 * kLanes <= channels; channel += 8 * kLanes)
    pool_channels<FloatVector, 8>(pooling, window, channel, out);
  for (; channel + 4 * kLanes <= channels; channel += 4 * kLanes)
    pool_channels<FloatVector, 4>(pooling, window, channel, out);
  for (; channel + kLanes <= channels; channel += kLanes)
    pool_channels<FloatVector, 1>(pooling, window, channel, out);
  for (; channel < channels; ++channel) pool_channels<float, 1>(pooling, window, channel, out);
}

void pool_maximum(const Window& window, int64_t channels, float* out) {
  pool_window(Maximum{}, window, channels, out);
}

void pool_average(const Window& window, int64_t channels, float divisor, float* out) {
  pool_window(Average{divisor}, window, channels, out);
}

constexpr PoolKernels kPoolKernels = {pool_maximum, pool_average};
