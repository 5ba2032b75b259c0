// binary_weight_linear, binary_weight_conv2d and their _bits: real inputs, packed weights.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "common/permuted.h"
#include "cuda/arguments.cuh"
#include "cuda/launch.cuh"
#include "cuda/operators.cuh"
#include "cuda/signed_sums.cuh"
#include "cuda/signed_tables.cuh"

namespace bnn_ext::cuda {
namespace {

using Integers = std::vector<int64_t>;
using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Sums, the operands that they point to, and the leading sizes of a result.
//
// Linear layers look sums up in tables, SignedTables, however many rows they have; convolutions
// make and multiply signs, SignedSums. For four weights of a lane and one row, the first take 6
// instructions and the second about 18 where a block has eight rows, more where it has one. But
// a pixel is in many windows, and each would make its tables anew.
template <typename Sums>
struct Call {
  Sums sums;
  Tensor input;
  Tensor weight;
  std::vector<int64_t> sizes;
};

// uint8 gives sums of int32.
void check_sums(const Tensor& input, int64_t terms) {
  STD_TORCH_CHECK(
      input.scalar_type() != ScalarType::Byte || terms <= std::numeric_limits<int32_t>::max() / 255,
      "sums of ", terms, " uint8 values with signs do not fit into int32");
}

Call<SignedTables> linear_call(const Tensor& input, const Tensor& weight, int64_t in_features) {
  STD_TORCH_CHECK(input.dim() > 0 && input.size(input.dim() - 1) == in_features, "input must have ",
                  in_features, " features in its last dimension");
  STD_TORCH_CHECK(in_features <= std::numeric_limits<int32_t>::max(),
                  "in_features must fit into int32, found ", in_features);
  check_rank("weight", weight, 2);
  check_sums(input, in_features);
  const Tensor x = operand("input", input, input.scalar_type(), input);
  const Tensor w = packed_operand("weight", weight, in_features, input);
  SignedTables sums = {};
  sums.input = x.const_data_ptr();
  sums.weight = data<Word>(w);
  sums.rows = product(leading_sizes(x));
  sums.features = in_features;
  sums.outputs = w.size(0);
  return {sums, x, w, leading_sizes(x)};
}

Call<SignedSums> conv2d_call(const Tensor& input, const Tensor& weight, int64_t in_channels,
                             const Integers& stride, const Integers& padding,
                             const Integers& dilation, int64_t groups, int64_t pad_value) {
  check_cuda(input);
  check_rank("input", input, 4);
  check_rank("weight", weight, 4);
  STD_TORCH_CHECK(input.size(1) == in_channels, "input must have ", in_channels,
                  " channels, found ", input.size(1));
  STD_TORCH_CHECK(groups >= 1 && in_channels % groups == 0 && weight.size(0) % groups == 0,
                  "groups must divide the ", in_channels, " input and ", weight.size(0),
                  " output channels, found ", groups);
  STD_TORCH_CHECK(-1 <= pad_value && pad_value <= 1, "pad_value must be -1, 0 or 1, found ",
                  pad_value);
  const Tensor w = packed_operand("weight", weight, in_channels / groups, input);
  SignedSums sums = {};
  sums.input = input.const_data_ptr();
  for (int i = 0; i < 4; ++i) sums.strides[i] = input.stride(i);
  sums.weight = data<Word>(w);
  const Window window =
      convolution_window({input.size(2), input.size(3)}, w, stride, padding, dilation);
  sums.window = window;
  sums.rows = input.size(0) * window.output.y * window.output.x;
  sums.group_inputs = in_channels / groups;
  sums.group_outputs = w.size(0) / groups;
  sums.outputs = w.size(0);
  sums.pad_value = pad_value;
  check_sums(input, window.kernel.y * window.kernel.x * sums.group_inputs);
  return {sums, input, w, {input.size(0), window.output.y, window.output.x}};
}

// Whether four neighbouring channels of a group can be loaded at a time.
template <typename In>
bool has_vectors(const SignedSums& sums) {
  const auto is_multiple = [](int64_t stride) { return stride % 4 == 0; };
  return sums.strides[1] == 1 && is_multiple(sums.group_inputs) && is_multiple(sums.strides[0]) &&
         is_multiple(sums.strides[2]) && is_multiple(sums.strides[3]) &&
         reinterpret_cast<uintptr_t>(sums.input) % (4 * sizeof(In)) == 0;
}

template <typename In, int kRows, typename Finish>
void launch_rows(const Call<SignedSums>& call, const Tensor& output, const Finish& finish) {
  const SignedSums& sums = call.sums;
  const int64_t blocks = (sums.rows + kRows - 1) / kRows * word_count(sums.outputs);
  launch_blocks(has_vectors<In>(sums) ? signed_sums_kernel<In, kRows, true, Finish>
                                      : signed_sums_kernel<In, kRows, false, Finish>,
                blocks, kSignedThreads, kSignedSharedBytes<kRows>, output, sums, finish);
}

template <typename In, typename Finish>
void launch_sums(const Call<SignedSums>& call, const Tensor& output, const Finish& finish) {
  if (call.sums.rows == 1)
    launch_rows<In, 1>(call, output, finish);
  else
    launch_rows<In, kSignedRows>(call, output, finish);
}

template <typename In, typename Finish>
void launch_sums(const Call<SignedTables>& call, const Tensor& output, const Finish& finish) {
  const int32_t device = output.get_device_index();
  int processors = 0, shared_bytes = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  STD_CUDA_CHECK(
      cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  const SignedTables sums = with_groups(call.sums, processors, shared_bytes);
  launch_blocks(sums.has_vectors<In>() ? signed_tables_kernel<In, true, Finish>
                                       : signed_tables_kernel<In, false, Finish>,
                sums.blocks(), sums.groups * kTableGroupThreads,
                signed_tables_shared_bytes(sums.groups), output, sums, finish);
}

// Calls launch(a value of the input's type).
template <typename Launch>
void for_type_of(const Tensor& input, const Launch& launch) {
  switch (input.scalar_type()) {
    case ScalarType::Float:
      return launch(float{});
    case ScalarType::Half:
      return launch(Half{});
    case ScalarType::BFloat16:
      return launch(BFloat16{});
    case ScalarType::Byte:
      return launch(uint8_t{});
    default:
      STD_TORCH_CHECK(false, "input must be Float, Half, BFloat16 or Byte, found ",
                      input.scalar_type());
  }
}

template <typename Sums>
Tensor values(const Call<Sums>& call, const std::optional<Tensor>& scale,
              const std::optional<Tensor>& bias) {
  const int64_t outputs = call.sums.outputs;
  const bool whole = call.input.scalar_type() == ScalarType::Byte;
  STD_TORCH_CHECK(!whole || (!scale && !bias), "scale and bias must be None for uint8 input");
  const auto s = vector_operand("scale", scale, ScalarType::Float, outputs, call.input);
  const auto b = vector_operand("bias", bias, ScalarType::Float, outputs, call.input);
  const Tensor output = new_output(call.input, call.sizes, outputs,
                                   whole ? ScalarType::Int : call.input.scalar_type());
  for_type_of(call.input, [&](auto zero) {
    using In = decltype(zero);
    if constexpr (std::is_same_v<In, uint8_t>)
      launch_sums<In>(call, output, StoreInteger{mutable_data<int32_t>(output)});
    else
      launch_sums<In>(call, output,
                      StoreValue<In>{mutable_data<In>(output), data<float>(s), data<float>(b)});
  });
  return output;
}

template <typename Sums>
Tensor bits(const Call<Sums>& call, const Tensor& threshold, const std::optional<Tensor>& flip) {
  const int64_t outputs = call.sums.outputs;
  const bool whole = call.input.scalar_type() == ScalarType::Byte;
  const auto t = vector_operand("threshold", threshold, whole ? ScalarType::Int : ScalarType::Float,
                                outputs, call.input);
  const auto f = vector_operand("flip", flip, ScalarType::Int, word_count(outputs), call.input);
  const Tensor output = new_output(call.input, call.sizes, word_count(outputs), ScalarType::Int);
  for_type_of(call.input, [&](auto zero) {
    using In = decltype(zero);
    using Sum = SumOf<In>;
    launch_sums<In>(call, output,
                    StoreComparison<Sum>{mutable_data<Word>(output), data<Sum>(t), data<Word>(f)});
  });
  return output;
}

}  // namespace

Tensor binary_weight_linear(const Tensor& input, const Tensor& weight, int64_t in_features,
                            const std::optional<Tensor>& scale, const std::optional<Tensor>& bias,
                            const std::optional<Tensor>& /*tiles*/) {
  return values(linear_call(input, weight, in_features), scale, bias);
}

Tensor binary_weight_linear_bits(const Tensor& input, const Tensor& weight, int64_t in_features,
                                 const Tensor& threshold, const std::optional<Tensor>& flip,
                                 const std::optional<Tensor>& /*tiles*/) {
  return bits(linear_call(input, weight, in_features), threshold, flip);
}

Tensor binary_weight_conv2d(const Tensor& input, const Tensor& weight, int64_t in_channels,
                            const Integers& stride, const Integers& padding,
                            const Integers& dilation, int64_t groups, int64_t pad_value,
                            const std::optional<Tensor>& scale, const std::optional<Tensor>& bias,
                            const std::optional<Tensor>& /*tiles*/) {
  const Tensor nhwc =
      values(conv2d_call(input, weight, in_channels, stride, padding, dilation, groups, pad_value),
             scale, bias);
  return permuted(nhwc, {0, 3, 1, 2});
}

Tensor binary_weight_conv2d_bits(const Tensor& input, const Tensor& weight, int64_t in_channels,
                                 const Integers& stride, const Integers& padding,
                                 const Integers& dilation, int64_t groups, int64_t pad_value,
                                 const Tensor& threshold, const std::optional<Tensor>& flip,
                                 const std::optional<Tensor>& /*tiles*/) {
  return bits(conv2d_call(input, weight, in_channels, stride, padding, dilation, groups, pad_value),
              threshold, flip);
}

STABLE_TORCH_LIBRARY_IMPL(bnn_ext, CUDA, m) {
  m.impl("binary_weight_linear", TORCH_BOX(&binary_weight_linear));
  m.impl("binary_weight_linear_bits", TORCH_BOX(&binary_weight_linear_bits));
  m.impl("binary_weight_conv2d", TORCH_BOX(&binary_weight_conv2d));
  m.impl("binary_weight_conv2d_bits", TORCH_BOX(&binary_weight_conv2d_bits));
}

}  // namespace bnn_ext::cuda
