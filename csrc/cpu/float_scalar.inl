// Half precision and the fused multiply-add of the levels without instructions for them; included
// inside their regions.

inline void half_to_float(const uint16_t* from, float* to) {
  using torch::headeronly::Half;
  for (int lane = 0; lane < kLanes; ++lane) to[lane] = Half(from[lane], Half::from_bits());
}
inline void float_to_half(const float* from, uint16_t* to) {
  for (int lane = 0; lane < kLanes; ++lane) to[lane] = torch::headeronly::Half(from[lane]).x;
}
template <typename Vector>
inline Vector fused_multiply_add(Vector y, const Vector& factor, const Vector& addend) {
  for (int lane = 0; lane < kLanes; ++lane)
    y[lane] = __builtin_fmaf(y[lane], factor[lane], addend[lane]);
  return y;
}
