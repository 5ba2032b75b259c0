// The epilogue of the fused operators by itself, on real values, in one pass over memory.
#include <torch/csrc/stable/library.h>

#include "cpu/epilogue.h"
#include "cpu/operators.h"

namespace bnn_ext::cpu {

constexpr int64_t kGrain = 1 << 14;  // values that are worth a thread

std::vector<Tensor> elementwise(const Room& room, const Tensor& input,
                                const std::vector<int64_t>& operations,
                                const std::vector<Tensor>& operands,
                                const std::optional<ScalarType>& dtype,
                                const std::optional<Tensor>& threshold,
                                const std::optional<Tensor>& flip) {
  STD_TORCH_CHECK(input.dim() > 0, "input must have at least 1 dimension");
  const Tensor source = checked(input, "input", input.scalar_type());
  const FusedOutputs outputs(room, shape_of(input), operations, operands, dtype, threshold, flip);
  Epilogue epilogue = outputs.epilogue();
  epilogue.input = {source.const_data_ptr(), float_type(input.scalar_type(), "input")};

  const EpilogueKernels& level = kernels().epilogue;
  const int64_t channels = epilogue.channels;
  const int64_t rows = channels > 0 ? input.numel() / channels : 0;
  const int64_t tasks = (rows + kTileWindows - 1) / kTileWindows;
  torch::stable::parallel_for(
      0, tasks, grain_for(tasks, input.numel(), kGrain), [&](int64_t begin, int64_t end) {
        int64_t positions[kTileWindows];
        for (int64_t task = begin; task < end; ++task) {
          const int64_t first = task * kTileWindows, count = std::min(kTileWindows, rows - first);
          for (int64_t i = 0; i < count; ++i) positions[i] = first + i;
          for (int64_t channel = 0; channel < channels; channel += kTileChannels)
            level.floats(epilogue, {/*sums=*/nullptr, positions, count, channel,
                                    std::min(kTileChannels, channels - channel)});
        }
      });
  return outputs.results();
}

}  // namespace bnn_ext::cpu

STABLE_TORCH_LIBRARY_IMPL(bnn_ext, CPU, m) {
  m.impl("elementwise", TORCH_BOX(&bnn_ext::cpu::WithoutRoom<&bnn_ext::cpu::elementwise>::call));
}
