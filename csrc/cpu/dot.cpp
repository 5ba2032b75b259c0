// Outputs of the shared loop nest: int32 sums, floats, packed bits; and the weight layout it reads.
#include "cpu/dot.h"

#include <torch/csrc/stable/library.h>

#include <cstring>

namespace bnn_ext::cpu {

namespace {

std::vector<int64_t> tiles_shape(const Tensor& weight, int64_t groups) {
  STD_TORCH_CHECK(weight.dim() == 2 || weight.dim() == 4, "weight must have 2 or 4 dimensions");
  STD_TORCH_CHECK(groups > 0 && weight.size(0) % groups == 0, "groups must divide ", weight.size(0),
                  " output channels");
  int64_t k = 1;
  for (int64_t i = 1; i < weight.dim(); ++i) k *= weight.size(i);
  return {groups * ((weight.size(0) / groups + kBlock - 1) / kBlock), k, kBlock};
}

}  // namespace

Tensor tile_weight(const Tensor& weight, int64_t groups) {
  const std::vector<int64_t> shape = tiles_shape(weight, groups);
  const Tensor source = checked(weight, "weight", ScalarType::Int);
  const Tensor tiles = new_tensor(weight, shape, ScalarType::Int);
  const int64_t group_blocks = shape[0] / groups, k = shape[1];
  const int64_t group_channels = weight.size(0) / groups;

  const Word* from = data<Word>(source);
  Word* to = mutable_data<Word>(tiles);
  for (int64_t group = 0; group < groups; ++group)
    for (int64_t block = 0; block < group_blocks; ++block)
      for (int64_t i = 0; i < k; ++i)
        for (int64_t lane = 0; lane < kBlock; ++lane) {
          const int64_t channel = block * kBlock + lane;
          *to++ = channel < group_channels ? from[(group * group_channels + channel) * k + i] : 0;
        }
  return tiles;
}

Tensor checked_tiles(const std::optional<Tensor>& tiles, const Tensor& weight, int64_t groups) {
  if (!tiles) return tile_weight(weight, groups);
  STD_TORCH_CHECK(shape_of(*tiles) == tiles_shape(weight, groups),
                  "tiles must be tile_weight(weight, groups)");
  return checked(*tiles, "tiles", ScalarType::Int);
}

Tensor dot_sums(const Dot& dot, const Tensor& like, std::vector<int64_t> shape) {
  const int64_t channels = dot.groups * dot.out_channels;
  shape.push_back(channels);
  const Tensor out = new_tensor(like, shape, ScalarType::Int);
  int32_t* to = mutable_data<int32_t>(out);
  run(dot,
      [&](int64_t position, int64_t group, int64_t channel, int64_t count, const int32_t* sums) {
        std::memcpy(to + position * channels + group * dot.out_channels + channel, sums,
                    count * sizeof(int32_t));
      });
  return out;
}

namespace {

template <typename T>
void store_floats(const Dot& dot, T* to, const float* scale, const float* bias) {
  const Kernels& level = kernels();
  const int64_t channels = dot.groups * dot.out_channels;
  run(dot,
      [&](int64_t position, int64_t group, int64_t channel, int64_t count, const int32_t* sums) {
        const int64_t first = group * dot.out_channels + channel;
        float values[kTileChannels];
        level.dot.to_float(sums, count, scale ? scale + first : nullptr,
                           bias ? bias + first : nullptr, values);
        T* out = to + position * channels + first;
        for (int64_t i = 0; i < count; ++i) out[i] = static_cast<T>(values[i]);
      });
}

}  // namespace

Tensor dot_float(const Dot& dot, const Tensor& like, std::vector<int64_t> shape,
                 const std::optional<Tensor>& scale, const std::optional<Tensor>& bias,
                 ScalarType dtype) {
  const int64_t channels = dot.groups * dot.out_channels;
  const auto scales = checked_vector(scale, "scale", channels, ScalarType::Float);
  const auto biases = checked_vector(bias, "bias", channels, ScalarType::Float);
  shape.push_back(channels);
  const Tensor out = new_tensor(like, shape, dtype);
  const float* s = data<float>(scales);
  const float* b = data<float>(biases);
  switch (dtype) {
    case ScalarType::Float:
      store_floats(dot, mutable_data<float>(out), s, b);
      break;
    case ScalarType::Half:
      store_floats(dot, mutable_data<torch::headeronly::Half>(out), s, b);
      break;
    case ScalarType::BFloat16:
      store_floats(dot, mutable_data<torch::headeronly::BFloat16>(out), s, b);
      break;
    default:
      STD_TORCH_CHECK(false, "dtype must be float32, float16 or bfloat16");
  }
  return out;
}

Tensor dot_bits(const Dot& dot, const Tensor& like, std::vector<int64_t> shape,
                const Tensor& threshold, const std::optional<Tensor>& flip) {
  const int64_t channels = dot.groups * dot.out_channels;
  const Tensor thresholds = *checked_vector(threshold, "threshold", channels, ScalarType::Int);
  const auto flips = checked_vector(flip, "flip", word_count(channels), ScalarType::Int);
  const int32_t* t = data<int32_t>(thresholds);
  const Word* f = data<Word>(flips);
  const Kernels& level = kernels();

  if (dot.groups > 1 && dot.out_channels % kWordBits != 0) {
    // A group's bits start inside another group's word: compare whole rows of sums afterwards.
    const Tensor sums = dot_sums(dot, like, shape);
    shape.push_back(word_count(channels));
    const Tensor out = new_tensor(like, shape, ScalarType::Int);
    const int32_t* from = data<int32_t>(sums);
    Word* to = mutable_data<Word>(out);
    const int64_t rows = dot.images * dot.positions;
    torch::stable::parallel_for(0, rows, grain_for(rows, rows * channels, 1 << 15),
                                [&](int64_t begin, int64_t end) {
                                  for (int64_t row = begin; row < end; ++row)
                                    level.pack.compare_int(from + row * channels, channels, t, f,
                                                           to + row * word_count(channels));
                                });
    return out;
  }

  shape.push_back(word_count(channels));
  const Tensor out = new_tensor(like, shape, ScalarType::Int);
  Word* to = mutable_data<Word>(out);
  run(dot,
      [&](int64_t position, int64_t group, int64_t channel, int64_t count, const int32_t* sums) {
        const int64_t first = group * dot.out_channels + channel;  // a multiple of 32
        const int64_t word = first / kWordBits;
        level.pack.compare_int(sums, count, t + first, f ? f + word : nullptr,
                               to + position * word_count(channels) + word);
      });
  return out;
}

}  // namespace bnn_ext::cpu

STABLE_TORCH_LIBRARY_IMPL(bnn_ext, CPU, m) {
  m.impl("tile_weight", TORCH_BOX(&bnn_ext::cpu::tile_weight));
}
