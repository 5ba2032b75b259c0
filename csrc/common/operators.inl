// The operators as C++ functions, in the order of csrc/ops.cpp; included in the namespace of each
// device, after Tensor and ScalarType.
//
// Their arguments are those of the schemas, in the same order: sequence.h relies on it. The fused
// operators have another one in front.

using Pair = std::vector<int64_t>;

// A tensor that nobody needs any more: floats may be written over it.
using Room = std::optional<Tensor>;

// A fused operator as its schema has it, with results of their own.
template <auto function>
struct WithoutRoom;
template <typename Result, typename... Args, Result (*function)(const Room&, Args...)>
struct WithoutRoom<function> {
  static Result call(Args... args) { return function(std::nullopt, args...); }
};

Tensor pack(const Tensor& input, const std::optional<Tensor>& threshold,
            const std::optional<Tensor>& flip);
Tensor flatten(const Tensor& packed, int64_t channels);

Tensor tile_weight(const Tensor& weight, int64_t groups);  // see bnn_ext/ops/packing.py

Tensor linear(const Tensor& input, const Tensor& weight, int64_t in_features,
              const std::optional<Tensor>& tiles);
Tensor linear_float(const Tensor& input, const Tensor& weight, int64_t in_features,
                    const std::optional<Tensor>& scale, const std::optional<Tensor>& bias,
                    ScalarType dtype, const std::optional<Tensor>& tiles);
Tensor linear_bits(const Tensor& input, const Tensor& weight, int64_t in_features,
                   const Tensor& threshold, const std::optional<Tensor>& flip,
                   const std::optional<Tensor>& tiles);
std::vector<Tensor> linear_fused(const Room& room, const Tensor& input, const Tensor& weight,
                                 int64_t in_features, const std::vector<int64_t>& operations,
                                 const std::vector<Tensor>& operands,
                                 const std::optional<ScalarType>& dtype,
                                 const std::optional<Tensor>& threshold,
                                 const std::optional<Tensor>& flip,
                                 const std::optional<Tensor>& tiles);

Tensor conv2d(const Tensor& input, const Tensor& weight, int64_t in_channels, const Pair& stride,
              const Pair& padding, const Pair& dilation, int64_t groups, int64_t pad_value,
              const std::optional<Tensor>& tiles);
Tensor conv2d_float(const Tensor& input, const Tensor& weight, int64_t in_channels,
                    const Pair& stride, const Pair& padding, const Pair& dilation, int64_t groups,
                    int64_t pad_value, const std::optional<Tensor>& scale,
                    const std::optional<Tensor>& bias, ScalarType dtype,
                    const std::optional<Tensor>& tiles);
Tensor conv2d_bits(const Tensor& input, const Tensor& weight, int64_t in_channels,
                   const Pair& stride, const Pair& padding, const Pair& dilation, int64_t groups,
                   int64_t pad_value, const Tensor& threshold, const std::optional<Tensor>& flip,
                   const std::optional<Tensor>& tiles);
std::vector<Tensor> conv2d_fused(
    const Room& room, const Tensor& input, const Tensor& weight, int64_t in_channels,
    const Pair& stride, const Pair& padding, const Pair& dilation, int64_t groups,
    int64_t pad_value, const std::vector<int64_t>& operations, const std::vector<Tensor>& operands,
    const std::optional<ScalarType>& dtype, const std::optional<Tensor>& threshold,
    const std::optional<Tensor>& flip, const std::optional<Tensor>& tiles);

Tensor binary_weight_linear(const Tensor& input, const Tensor& weight, int64_t in_features,
                            const std::optional<Tensor>& scale, const std::optional<Tensor>& bias,
                            const std::optional<Tensor>& tiles);
Tensor binary_weight_linear_bits(const Tensor& input, const Tensor& weight, int64_t in_features,
                                 const Tensor& threshold, const std::optional<Tensor>& flip,
                                 const std::optional<Tensor>& tiles);

Tensor binary_weight_conv2d(const Tensor& input, const Tensor& weight, int64_t in_channels,
                            const Pair& stride, const Pair& padding, const Pair& dilation,
                            int64_t groups, int64_t pad_value, const std::optional<Tensor>& scale,
                            const std::optional<Tensor>& bias, const std::optional<Tensor>& tiles);
Tensor binary_weight_conv2d_bits(const Tensor& input, const Tensor& weight, int64_t in_channels,
                                 const Pair& stride, const Pair& padding, const Pair& dilation,
                                 int64_t groups, int64_t pad_value, const Tensor& threshold,
                                 const std::optional<Tensor>& flip,
                                 const std::optional<Tensor>& tiles);

Tensor max_pool2d(const Tensor& input, const Pair& kernel_size, const Pair& stride,
                  const Pair& padding, const Pair& dilation, bool ceil_mode,
                  const std::optional<Tensor>& minimum);
Tensor max_pool2d_float(const Tensor& input, const Pair& kernel_size, const Pair& stride,
                        const Pair& padding, const Pair& dilation, bool ceil_mode);
Tensor avg_pool2d(const Tensor& input, const Pair& kernel_size, const Pair& stride,
                  const Pair& padding, bool ceil_mode, bool count_include_pad,
                  const std::optional<int64_t>& divisor_override);
Tensor global_avg_pool2d(const Tensor& input);

Tensor select_channels(const std::vector<Tensor>& inputs, const std::vector<int64_t>& channels,
                       const Tensor& index);

std::vector<Tensor> elementwise(const Room& room, const Tensor& input,
                                const std::vector<int64_t>& operations,
                                const std::vector<Tensor>& operands,
                                const std::optional<ScalarType>& dtype,
                                const std::optional<Tensor>& threshold,
                                const std::optional<Tensor>& flip);
