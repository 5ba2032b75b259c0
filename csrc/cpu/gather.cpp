// Runs of kernel rows for convolutions of few channels.
#include "cpu/gather.h"

namespace bnn_ext::cpu {
namespace {

constexpr int64_t kGrain = 1 << 13;  // gathered words that are worth a thread

// Part of a tap's bits on their way into one word of the run: `count` columns from `output` on take
// them from pixels `stride` apart, from `input` on.
struct Move {
  int64_t word;
  int64_t input, output, count;
  int64_t left_shift;  // negative: to the right
};

std::vector<Move> moves_of(const Gather& gather, int64_t input_width, int64_t width) {
  std::vector<Move> moves;
  for (int64_t tap = 0; tap < gather.kernel; ++tap) {
    const auto input = [&](int64_t column) {
      return column * gather.stride - gather.padding + tap * gather.dilation;
    };
    int64_t first = 0, last = width;
    while (first < last && input(first) < 0) ++first;
    while (last > first && input(last - 1) >= input_width) --last;
    if (first == last) continue;  // nothing but padding
    const int64_t bit = tap * gather.channels, word = bit / kWordBits, shift = bit % kWordBits;
    moves.push_back({word, input(first), first, last - first, shift});
    if (shift + gather.channels > kWordBits)
      moves.push_back({word + 1, input(first), first, last - first, shift - kWordBits});
  }
  return moves;
}

// The channels of one group in every pixel of a row, each pixel in a word of its own.
void read_group(const Word* row, int64_t width, int64_t pixel_words, int64_t first_bit,
                int64_t channels, Word* out) {
  if (first_bit % kWordBits + channels > kWordBits) {
    for (int64_t x = 0; x < width; ++x)
      out[x] = read_bits(row + x * pixel_words, first_bit, channels);
  } else {
    const Word* word = row + first_bit / kWordBits;
    const int64_t shift = first_bit % kWordBits;
    const Word mask = low_bits(channels);
    for (int64_t x = 0; x < width; ++x) out[x] = word[x * pixel_words] >> shift & mask;
  }
}

}  // namespace

Tensor gather_map(const Tensor& input, const Gather& gather, int64_t width) {
  const int64_t words = gather.words(), pixel_words = input.size(3), input_width = input.size(2);
  const int64_t column_words = gather.groups * words;
  const Tensor out =
      new_tensor({input.size(0), input.size(1), width, column_words}, ScalarType::Int);
  const std::vector<Move> moves = moves_of(gather, input_width, width);
  const Word* from = data<Word>(input);
  Word* to = mutable_data<Word>(out);

  const int64_t rows = input.size(0) * input.size(1);
  torch::stable::parallel_for(
      0, rows, grain_for(rows, out.numel(), kGrain), [&](int64_t begin, int64_t end) {
        std::vector<Word> pixels(input_width), runs(words * width);
        for (int64_t row = begin; row < end; ++row)
          for (int64_t group = 0; group < gather.groups; ++group) {
            read_group(from + row * input_width * pixel_words, input_width, pixel_words,
                       group * gather.channels, gather.channels, pixels.data());
            std::fill(runs.begin(), runs.end(), Word{0});
            for (const Move& move : moves) {
              const Word* pixel = pixels.data() + move.input;
              Word* run = runs.data() + move.word * width + move.output;
              if (move.left_shift >= 0)
                for (int64_t i = 0; i < move.count; ++i)
                  run[i] |= pixel[i * gather.stride] << move.left_shift;
              else
                for (int64_t i = 0; i < move.count; ++i)
                  run[i] |= pixel[i * gather.stride] >> -move.left_shift;
            }
            Word* column = to + row * width * column_words + group * words;
            for (int64_t word = 0; word < words; ++word)
              for (int64_t x = 0; x < width; ++x)
                column[x * column_words + word] = runs[word * width + x];
          }
      });
  return out;
}

Tensor gather_tiles(const Tensor& tiles, const Gather& gather, int64_t first, int64_t last) {
  const int64_t rows = tiles.size(0) * tiles.size(1) / gather.kernel, words = gather.words();
  const int64_t lanes = tiles.size(2);
  const Tensor out =
      new_tensor({tiles.size(0), tiles.size(1) / gather.kernel * words, lanes}, ScalarType::Int);
  const Word* from = data<Word>(tiles);
  Word* to = mutable_data<Word>(out);
  std::fill_n(to, out.numel(), Word{0});
  for (int64_t row = 0; row < rows; ++row, from += gather.kernel * lanes, to += words * lanes)
    for (int64_t tap = first; tap < last; ++tap) {
      const int64_t bit = tap * gather.channels, shift = bit % kWordBits;
      Word* word = to + bit / kWordBits * lanes;
      for (int64_t lane = 0; lane < lanes; ++lane) {
        const Word bits = from[tap * lanes + lane];
        word[lane] |= bits << shift;
        if (shift + gather.channels > kWordBits) word[lanes + lane] |= bits >> (kWordBits - shift);
      }
    }
  return out;
}

}  // namespace bnn_ext::cpu
