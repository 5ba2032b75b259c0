// The loop nest that linear and conv2d share: windows of packed words times tiled weights.
//
// A problem is a list of lines: output positions at a constant step that see the same taps. A
// zero-padded convolution therefore has one list of lines for its interior and others for its
// borders, where the taps that fall outside are simply left out.
#pragma once

#include <limits>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/tensor.h"

namespace bnn_ext::cpu {

struct Line {
  int64_t first_tap, tap_count;
  int64_t tap_words;
  int32_t k;            // real bits in a window
  int64_t input;        // words from the start of the image to the first window
  int64_t input_step;   // words from window to window
  int64_t output;       // first output position in the image
  int64_t output_step;  // positions from window to window
  int64_t count;
};

constexpr int64_t kGrainProducts = 1 << 18;  // word products that are worth waking a thread
constexpr int64_t kLineWindows = 48;  // longer lines are split, to have enough tasks for threads

struct Dot {
  const Word* input;
  int64_t images;
  int64_t image_words;  // input words of one image
  int64_t positions;    // output positions of one image
  int64_t groups;
  int64_t group_words;   // input words from one group to the next
  int64_t out_channels;  // in one group
  const Word* tiles;
  int64_t block_words;  // words of one block of 16 channels
  std::vector<Tap> taps;
  std::vector<Line> lines;
};

// [out, ..., words] -> [groups * blocks, k, 16]; see ops.py.
Tensor tile_weight(const Tensor& weight, int64_t groups);

// The given tiles, checked, or new ones.
Tensor checked_tiles(const std::optional<Tensor>& tiles, const Tensor& weight, int64_t groups);

// Sums of `k` signs are int32.
inline void check_sums(int64_t k) {
  STD_TORCH_CHECK(k <= std::numeric_limits<int32_t>::max(), "a sum of ", k, " signs overflows");
}

// Appends `line`, cut into pieces of at most kLineWindows windows.
inline void add_line(std::vector<Line>& lines, Line line) {
  const int64_t pieces = (line.count + kLineWindows - 1) / kLineWindows;
  int64_t left = line.count;
  for (int64_t piece = 0; piece < pieces; ++piece) {
    line.count = (left + pieces - piece - 1) / (pieces - piece);
    left -= line.count;
    lines.push_back(line);
    line.input += line.count * line.input_step;
    line.output += line.count * line.output_step;
  }
}

// Computes every sum and gives it to store(position, group, channel, channels, sums): `channels`
// sums (at most kTileChannels) that start at `channel` of `group`, at an output position counted
// over all images. Calls come from several threads, each result exactly once.
template <typename Store>
void run(const Dot& dot, const Store& store) {
  const Kernels& level = kernels();
  const int64_t chunks = (dot.out_channels + kTileChannels - 1) / kTileChannels;
  const int64_t blocks = (dot.out_channels + kBlock - 1) / kBlock;
  const int64_t line_count = dot.lines.size();
  const int64_t tasks = dot.images * dot.groups * chunks * line_count;
  const int64_t work =  // word products
      dot.images * dot.positions * dot.groups * dot.out_channels * (dot.block_words / kBlock);

  torch::stable::parallel_for(
      0, tasks, grain_for(tasks, work, kGrainProducts), [&](int64_t begin, int64_t end) {
        alignas(64) int32_t sums[kMaxRows * kTileChannels];
        for (int64_t task = begin; task < end; ++task) {
          // Lines turn fastest, so that one chunk's weights stay in the cache.
          const Line& line = dot.lines[task % line_count];
          const int64_t chunk = task / line_count % chunks;
          const int64_t group = task / line_count / chunks % dot.groups;
          const int64_t image = task / line_count / chunks / dot.groups;
          const int64_t first_block = chunk * kTileBlocks;
          const int64_t channels = std::min(kTileChannels, dot.out_channels - first_block * kBlock);

          DotTile tile;
          tile.input = dot.input + image * dot.image_words + group * dot.group_words + line.input;
          tile.row_stride = line.input_step;
          tile.taps = dot.taps.data() + line.first_tap;
          tile.tap_count = line.tap_count;
          tile.tap_words = line.tap_words;
          tile.weight = dot.tiles + (group * blocks + first_block) * dot.block_words;
          tile.block_stride = dot.block_words;
          tile.blocks = (channels + kBlock - 1) / kBlock;
          tile.k = line.k;
          tile.sums = sums;

          const int64_t passes = (line.count + level.dot.rows - 1) / level.dot.rows;
          int64_t position = image * dot.positions + line.output;
          int64_t left = line.count;
          for (int64_t pass = passes; pass > 0; --pass) {  // passes of nearly equal height
            tile.rows = (left + pass - 1) / pass;
            left -= tile.rows;
            level.dot.dot(tile);
            for (int64_t row = 0; row < tile.rows; ++row, position += line.output_step)
              store(position, group, first_block * kBlock, channels, sums + row * kTileChannels);
            tile.input += tile.rows * tile.row_stride;
          }
        }
      });
}

// The three kinds of output, [positions, groups * out_channels] each. `shape` is the shape of the
// result without its last dimension.
Tensor dot_sums(const Dot& dot, const Tensor& like, std::vector<int64_t> shape);
Tensor dot_float(const Dot& dot, const Tensor& like, std::vector<int64_t> shape,
                 const std::optional<Tensor>& scale, const std::optional<Tensor>& bias,
                 ScalarType dtype);
Tensor dot_bits(const Dot& dot, const Tensor& like, std::vector<int64_t> shape,
                const Tensor& threshold, const std::optional<Tensor>& flip);

}  // namespace bnn_ext::cpu
