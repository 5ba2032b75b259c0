// select_channels: any choice of channels of packed rows.
#include <torch/csrc/stable/library.h>

#include "cuda/arguments.cuh"
#include "cuda/launch.cuh"
#include "cuda/operators.cuh"
#include "cuda/select_channels.cuh"

namespace bnn_ext::cuda {

Tensor select_channels(const std::vector<Tensor>& inputs, const std::vector<int64_t>& channels,
                       const Tensor& index) {
  STD_TORCH_CHECK(!inputs.empty() && inputs.size() <= kMostInputs, "inputs must be 1 to ",
                  kMostInputs, " tensors on a CUDA device, found ", inputs.size());
  STD_TORCH_CHECK(inputs.size() == channels.size(), "channels must have ", inputs.size(),
                  " elements like inputs, found ", channels.size());
  check_rank("index", index, 1);
  SelectChannels select = {};
  std::vector<Tensor> kept;
  int64_t end_channel = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    kept.push_back(packed_operand("inputs", inputs[i], channels[i], inputs[0]));
    STD_TORCH_CHECK(leading_sizes(kept[i]) == leading_sizes(kept[0]),
                    "inputs must have the same leading dimensions");
    end_channel += channels[i];
    select.inputs[i] = {data<Word>(kept[i]), word_count(channels[i]), end_channel};
  }
  const Tensor indices = operand("index", index, ScalarType::Int, inputs[0]);
  const std::vector<int64_t> sizes = leading_sizes(kept[0]);
  select.input_count = static_cast<int>(inputs.size());
  select.index = data<int32_t>(indices);
  select.outputs = index.size(0);
  select.rows = product(sizes);
  const int64_t words = word_count(select.outputs);
  const Tensor output = new_output(kept[0], sizes, words, ScalarType::Int);
  select.output = mutable_data<Word>(output);
  const auto start = [&](auto* kernel, int64_t group) {
    launch_stream(kernel, (select.rows + 31) / 32 * (words / group) * 32, output, select);
  };
  if (words % 4 == 0)
    start(select_channels_kernel<4>, 4);
  else
    start(select_channels_kernel<1>, 1);
  return output;
}

STABLE_TORCH_LIBRARY_IMPL(bnn_ext, CUDA, m) {
  m.impl("select_channels", TORCH_BOX(&select_channels));
}

}  // namespace bnn_ext::cuda
