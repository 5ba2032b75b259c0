// Outputs of the shared loop nest: int32 sums, floats, packed bits; and the weight layout it reads.
#include "cpu/dot.h"

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <utility>

#include "cpu/epilogue.h"
#include "cpu/operators.h"

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
  const Tensor tiles = new_tensor(shape, ScalarType::Int);
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

namespace {

constexpr int64_t kGrainProducts = 1 << 18;  // word products that are worth waking a thread

// Some windows of a region, few enough for one tile, from this row and column on.
struct Piece {
  const Region* region;
  int64_t row, column, count;
};

std::vector<Piece> cut(const std::vector<Region>& regions) {
  std::vector<Piece> pieces;
  pieces.reserve(regions.size());  // as many as these in a small problem
  for (const Region& region : regions) {
    const int64_t windows = region.height * region.width;
    const int64_t parts = (windows + kTileWindows - 1) / kTileWindows;
    for (int64_t part = 0; part < parts; ++part) {  // parts of nearly equal size
      const int64_t first = windows * part / parts;
      pieces.push_back({&region, first / region.width, first % region.width,
                        windows * (part + 1) / parts - first});
    }
  }
  return pieces;
}

// Weights that a layer reads for the first time come from far away, since the layers before it have
// filled the caches with theirs. So each piece asks for its share of the next chunk's, unless it is
// the only one: then all of them stream by once, which the CPU's own prefetchers see. Into L2: what
// is being read fills L1.
void prefetch_weights(const Word* words, int64_t count, int64_t part, int64_t parts) {
  constexpr int64_t kLineWords = 64 / sizeof(Word);
  const int64_t lines = count / kLineWords;
  for (int64_t line = lines * part / parts; line < lines * (part + 1) / parts; ++line)
    __builtin_prefetch(words + line * kLineWords, 0, 2);
}

// The values that sums become, if not bits: [positions, channels] of `size` bytes each.
struct Results {
  const void* values;
  int64_t channels, size;
};

// Calls compute(const DotTile&, const SumTile&) for all tiles, from several threads.
template <typename Compute>
void run(const Dot& dot, const Results& results, const Compute& compute) {
  const std::vector<Piece> pieces = cut(dot.regions);
  const int64_t piece_count = pieces.size();
  const int64_t chunks = (dot.out_channels + kTileChannels - 1) / kTileChannels;
  const int64_t blocks = (dot.out_channels + kBlock - 1) / kBlock;
  const int64_t tasks = dot.images * dot.groups * chunks * piece_count;
  const int64_t work =  // word products
      dot.images * dot.positions * dot.groups * dot.out_channels * (dot.block_words / kBlock);

  torch::stable::parallel_for(
      0, tasks, grain_for(tasks, work, kGrainProducts), [&](int64_t begin, int64_t end) {
        alignas(64) int32_t sums[kTileWindows * kTileChannels];
        int32_t* rows[kTileWindows];
        for (int64_t i = 0; i < kTileWindows; ++i) rows[i] = sums + i * kTileChannels;
        const Word* windows[kTileWindows];
        int64_t positions[kTileWindows];
        const char* result_rows[kTileWindows];
        for (int64_t task = begin; task < end; ++task) {
          // Pieces turn fastest, so that one chunk's weights stay in the cache.
          const Piece& piece = pieces[task % piece_count];
          const int64_t chunk = task / piece_count % chunks;
          const int64_t group = task / piece_count / chunks % dot.groups;
          const int64_t image = task / piece_count / chunks / dot.groups;
          const int64_t first_block = chunk * kTileBlocks;
          const int64_t first_channel = group * dot.out_channels + first_block * kBlock;
          const int64_t channels = std::min(kTileChannels, dot.out_channels - first_block * kBlock);

          const Region& region = *piece.region;
          const Word* row = dot.input + image * dot.image_words + group * dot.group_words +
                            region.input + piece.row * region.input_row;
          int64_t output = image * dot.positions + region.output + piece.row * region.output_row;
          for (int64_t i = 0, column = piece.column; i < piece.count; column = 0) {
            const int64_t end = std::min(piece.count, i + region.width - column);
            for (; i < end; ++i, ++column) {
              windows[i] = row + column * region.input_column;
              positions[i] = output + column * region.output_column;
            }
            row += region.input_row;
            output += region.output_row;
          }
          const Word* weight = region.tiles + (group * blocks + first_block) * dot.block_words;
          if (chunk + 1 < chunks && piece_count > 1) {
            const int64_t next_blocks = std::min(kTileBlocks, blocks - first_block - kTileBlocks);
            prefetch_weights(weight + kTileBlocks * dot.block_words, next_blocks * dot.block_words,
                             task % piece_count, piece_count);
          }
          if (results.values)
            for (int64_t i = 0; i < piece.count; ++i)
              result_rows[i] = static_cast<const char*>(results.values) +
                               (positions[i] * results.channels + first_channel) * results.size;
          compute({windows, piece.count, dot.steps.data() + region.first_step, region.step_count,
                   region.step_words, weight, dot.block_words, (channels + kBlock - 1) / kBlock,
                   region.k, rows, results.values ? result_rows : nullptr, results.size},
                  {sums, positions, piece.count, first_channel, channels});
        }
      });
}

}  // namespace

Tensor dot_sums(const Dot& dot, std::vector<int64_t> shape) {
  const int64_t channels = channels_of(dot);
  shape.push_back(channels);
  const Tensor out = new_tensor(shape, ScalarType::Int);
  int32_t* to = mutable_data<int32_t>(out);
  const bool aligned = channels % kBlock == 0 && reinterpret_cast<uintptr_t>(to) % 64 == 0;
  const DotKernels& level = kernels().dot;
  run(dot, {to, channels, sizeof *to}, [&](const DotTile& dot_tile, const SumTile& tile) {
    if (aligned && tile.channels == kTileChannels) {
      int32_t* rows[kTileWindows];
      for (int64_t i = 0; i < tile.window_count; ++i)
        rows[i] = to + tile.positions[i] * channels + tile.first_channel;
      DotTile direct = dot_tile;
      direct.sums = rows;
      return level.dot(direct);
    }
    level.dot(dot_tile);
    for (int64_t i = 0; i < tile.window_count; ++i)
      std::memcpy(to + tile.positions[i] * channels + tile.first_channel,
                  tile.sums + i * kTileChannels, tile.channels * sizeof(int32_t));
  });
  return out;
}

std::vector<Tensor> dot_fused(const Room& room, const Dot& dot, std::vector<int64_t> shape,
                              const std::vector<int64_t>& operations,
                              const std::vector<Tensor>& operands,
                              const std::optional<ScalarType>& dtype,
                              const std::optional<Tensor>& threshold,
                              const std::optional<Tensor>& flip) {
  shape.push_back(channels_of(dot));
  // Where a group's bits start inside another group's word, whole rows are compared afterwards.
  const bool whole_words = dot.groups == 1 || dot.out_channels % kWordBits == 0;
  const FusedOutputs outputs(room, shape, operations, operands, dtype, threshold, flip,
                             whole_words);
  const Kernels& level = kernels();
  const Epilogue& epilogue = outputs.epilogue();
  const Results results = {epilogue.floats, epilogue.channels,
                           static_cast<int64_t>(size_of(epilogue.type))};
  run(dot, results, [&](const DotTile& tile, const SumTile& sums) {
    level.dot.dot(tile);
    level.epilogue.floats(epilogue, sums);
  });
  return outputs.results();
}

Tensor dot_float(const Dot& dot, std::vector<int64_t> shape, const std::optional<Tensor>& scale,
                 const std::optional<Tensor>& bias, ScalarType dtype) {
  std::vector<int64_t> operations;
  std::vector<Tensor> operands;
  if (scale) {
    operations.push_back(static_cast<int64_t>(Operation::kMultiply));
    operands.push_back(*checked_vector(scale, "scale", channels_of(dot), ScalarType::Float));
  }
  if (bias) {
    operations.push_back(static_cast<int64_t>(Operation::kAdd));
    operands.push_back(*checked_vector(bias, "bias", channels_of(dot), ScalarType::Float));
  }
  return dot_fused(std::nullopt, dot, std::move(shape), operations, operands, dtype, std::nullopt,
                   std::nullopt)[0];
}

Tensor dot_bits(const Dot& dot, std::vector<int64_t> shape, const Tensor& threshold,
                const std::optional<Tensor>& flip) {
  const int64_t channels = channels_of(dot);
  const Tensor thresholds = *checked_vector(threshold, "threshold", channels, ScalarType::Int);
  const auto flips = checked_vector(flip, "flip", word_count(channels), ScalarType::Int);
  const int32_t* t = data<int32_t>(thresholds);
  const Word* f = data<Word>(flips);

  // Where a group's bits start inside another group's word, whole rows are compared afterwards.
  if (dot.groups > 1 && dot.out_channels % kWordBits != 0)
    return pack(dot_sums(dot, std::move(shape)), thresholds, flips);

  std::vector<int32_t> changed;  // thresholds that a kernel cannot read as they are
  if (f || channels % kBlock != 0) changed = padded(t, channels);

  // sum <= t is not (sum >= t + 1), and always true for the greatest t.
  constexpr int32_t kGreatest = std::numeric_limits<int32_t>::max();
  std::vector<Word> invert(word_count(channels));
  for (int64_t channel = 0; f && channel < channels; ++channel)
    if (get_bit(f, channel)) {
      if (t[channel] == kGreatest) {
        changed[channel] = std::numeric_limits<int32_t>::min();
      } else {
        ++changed[channel];
        invert[channel / kWordBits] |= Word{1} << channel % kWordBits;
      }
    }

  shape.push_back(word_count(channels));
  const Tensor out = new_tensor(shape, ScalarType::Int);
  const Thresholds compared = {changed.empty() ? t : changed.data(), invert.data(), channels,
                               mutable_data<Word>(out)};
  const EpilogueKernels& level = kernels().epilogue;
  run(dot, {},
      [&](const DotTile& tile, const SumTile& sums) { level.dot_bits(compared, tile, sums); });
  return out;
}

}  // namespace bnn_ext::cpu

STABLE_TORCH_LIBRARY_IMPL(bnn_ext, CPU, m) {
  m.impl("tile_weight", TORCH_BOX(&bnn_ext::cpu::tile_weight));
}
