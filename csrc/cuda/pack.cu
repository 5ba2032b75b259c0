// pack, unpack and flatten: between values and packed words.
#include <torch/csrc/stable/library.h>

#include "cuda/arguments.cuh"
#include "cuda/launch.cuh"
#include "cuda/operators.cuh"
#include "cuda/pack.cuh"

namespace bnn_ext::cuda {
namespace {

// One thread per bit, one warp per word.
template <typename Operation>
__global__ void bits_kernel(Operation operation, Word* output, int64_t channels, int64_t count) {
  for (int64_t i = first_index(); i < count; i += index_stride()) {
    const Place at = place(i, channels);
    store_bits(output, at, channels, at.channel < channels && operation.bit(at.row, at.channel));
  }
}

// Inputs of up to four dimensions are read where they are, for example an NCHW map seen as NHWC.
Layout layout(const Tensor& input) {
  Layout layout = {{1, 1, 1, 1}, {0, 0, 0, 0}};
  const int64_t missing = 4 - input.dim();
  for (int64_t i = 0; i < input.dim(); ++i) {
    layout.sizes[missing + i] = input.size(i);
    layout.strides[missing + i] = input.stride(i);
  }
  return layout;
}

template <typename T>
void launch_pack(const Tensor& input, const std::optional<Tensor>& threshold,
                 const std::optional<Tensor>& flip, int64_t rows, const Tensor& output) {
  const int64_t channels = input.size(input.dim() - 1), words = word_count(channels);
  const T* const values = data<T>(input);
  const auto* const thresholds = data<Compared<T>>(threshold);
  Word* const to = mutable_data<Word>(output);
  const Layout strided = layout(input);
  const Pack<T, Compared<T>> pack = {values, strided, thresholds, data<Word>(flip)};
  if (input.is_contiguous() && channels % kPackValues<T> == 0 && is_aligned(values) &&
      is_aligned(thresholds)) {
    const PackRows<T> whole = {values, thresholds, data<Word>(flip), rows, channels, to};
    launch_stream(pack_rows_kernel<T>, rows * lane_count<kPackValues<T>>(channels), output, whole);
  } else if (words == 1 || (strided.sizes[2] > 1 && strided.strides[2] < strided.strides[3])) {
    launch_stream(pack_columns_kernel<T>, rows * words, output, pack, channels, to);
  } else {
    launch(bits_kernel<Pack<T, Compared<T>>>, place_count(rows, channels), output, pack, to,
           channels);
  }
}

}  // namespace

Tensor pack(const Tensor& input, const std::optional<Tensor>& threshold,
            const std::optional<Tensor>& flip) {
  check_cuda(input);
  STD_TORCH_CHECK(input.dim() >= 1, "input must have at least 1 dimension, found a scalar");
  STD_TORCH_CHECK(threshold || !flip, "flip needs a threshold");
  const int64_t channels = input.size(input.dim() - 1);
  const ScalarType dtype = input.scalar_type();
  const ScalarType threshold_dtype = dtype == ScalarType::Int ? dtype : ScalarType::Float;
  const auto t = vector_operand("threshold", threshold, threshold_dtype, channels, input);
  const auto f = vector_operand("flip", flip, ScalarType::Int, word_count(channels), input);

  const std::vector<int64_t> sizes = leading_sizes(input);
  const int64_t rows = product(sizes);
  const Tensor x = input.dim() <= 4 ? input : torch::stable::reshape(input, {rows, channels});
  const Tensor output = new_output(input, sizes, word_count(channels), ScalarType::Int);
  switch (dtype) {
    case ScalarType::Float:
      launch_pack<float>(x, t, f, rows, output);
      break;
    case ScalarType::Half:
      launch_pack<Half>(x, t, f, rows, output);
      break;
    case ScalarType::BFloat16:
      launch_pack<BFloat16>(x, t, f, rows, output);
      break;
    case ScalarType::Int:
      launch_pack<int32_t>(x, t, f, rows, output);
      break;
    default:
      STD_TORCH_CHECK(false, "input must be Float, Half, BFloat16 or Int, found ", dtype);
  }
  return output;
}

template <typename T>
void launch_unpack(const Tensor& words, int64_t channels, const Tensor& output) {
  constexpr int kValues = kVectorBytes / sizeof(T);
  const int64_t rows = product(leading_sizes(words));
  const bool vectors = channels % kValues == 0;
  launch_stream(vectors ? unpack_kernel<T, kValues> : unpack_kernel<T, 1>,
                output.numel() / (vectors ? kValues : 1), output, data<Word>(words), rows, channels,
                mutable_data<T>(output));
}

Tensor unpack(const Tensor& packed, int64_t channels, ScalarType dtype) {
  const Tensor words = packed_operand("packed", packed, channels, packed);
  const Tensor output = new_output(words, leading_sizes(words), channels, dtype);
  switch (dtype) {
    case ScalarType::Float:
      launch_unpack<float>(words, channels, output);
      break;
    case ScalarType::Half:
      launch_unpack<Half>(words, channels, output);
      break;
    case ScalarType::BFloat16:
      launch_unpack<BFloat16>(words, channels, output);
      break;
    case ScalarType::Int:
      launch_unpack<int32_t>(words, channels, output);
      break;
    case ScalarType::Char:
      launch_unpack<int8_t>(words, channels, output);
      break;
    default:
      STD_TORCH_CHECK(false, "dtype must be Float, Half, BFloat16, Int or Char, found ", dtype);
  }
  return output;
}

Tensor flatten(const Tensor& packed, int64_t channels) {
  const Tensor words = packed_operand("packed", packed, channels, packed);
  STD_TORCH_CHECK(words.dim() >= 2, "packed must have at least 2 dimensions, found ", words.dim());
  const int64_t rows = words.size(0);
  int64_t positions = 1;
  for (int64_t i = 1; i < words.dim() - 1; ++i) positions *= words.size(i);
  const int64_t features = positions * channels;
  const Tensor output = new_output(words, {rows}, word_count(features), ScalarType::Int);
  launch_stream(flatten_kernel, output.numel(), output, data<Word>(words), rows, positions,
                channels, mutable_data<Word>(output));
  return output;
}

STABLE_TORCH_LIBRARY_IMPL(bnn_ext, CUDA, m) {
  m.impl("pack", TORCH_BOX(&pack));
  m.impl("unpack", TORCH_BOX(&unpack));
  m.impl("flatten", TORCH_BOX(&flatten));
}

}  // namespace bnn_ext::cuda
