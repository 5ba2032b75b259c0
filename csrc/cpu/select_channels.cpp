// Any choice of channels of packed maps on the CPU: concatenation, slices, shuffles, permutations.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>

#include "cpu/kernels.h"
#include "cpu/operators.h"

namespace bnn_ext::cpu {
namespace {

constexpr int64_t kGrain = 1 << 14;  // words, read or joined, that are worth a thread

// A word of every position of an input.
struct Source {
  const Word* input;
  int64_t word, step;  // words from position to position

  const Word* at(int64_t position) const { return input + position * step + word; }
};

// Neighbouring output words whose bits are neighbours in an input, from bit `shift` of a word on.
struct Copy {
  Source source;
  int64_t shift, out, count;
};

// An output word that is put together.
struct Join {
  int64_t out, first_term, term_count;
};

struct Plan {
  std::vector<Copy> copies;
  std::vector<Source> columns;  // the words that joins read
  std::vector<Term> terms;      // whose sources are columns
  std::vector<Join> joins;
};

// Makes the plan of the output words one after the other.
class Planner {
 public:
  Planner(const std::vector<Tensor>& inputs, const std::vector<int64_t>& channels) {
    for (size_t i = 0; i < inputs.size(); ++i) {
      const int64_t words = word_count(channels[i]);
      inputs_.push_back({data<Word>(inputs[i]), words, channels_, channels_ + channels[i], words_});
      channels_ += channels[i];
      words_ += words;
    }
    columns_.resize(words_, kNone);
  }

  Plan operator()(const int32_t* index, int64_t count) {
    for (int64_t first = 0; first < count; first += kWordBits)
      add_word(first / kWordBits, index + first, std::min(kWordBits, count - first));
    return std::move(plan_);
  }

 private:
  static constexpr int64_t kNone = -1;

  struct Input {
    const Word* words;
    int64_t step;                        // words from position to position
    int64_t first_channel, end_channel;  // of all channels
    int64_t first_word;                  // of all words

    Source source(int64_t word) const { return {words, word, step}; }
  };

  const Input& input_of(int64_t channel) const {
    STD_TORCH_CHECK(0 <= channel && channel < channels_, "index must be in 0..", channels_ - 1,
                    ", found ", channel);
    return *std::upper_bound(
        inputs_.begin(), inputs_.end(), channel,
        [](int64_t value, const Input& input) { return value < input.end_channel; });
  }

  void add_word(int64_t out, const int32_t* index, int64_t count) {
    const Input& input = input_of(index[0]);
    const int64_t from = index[0] - input.first_channel;
    const bool is_run = std::adjacent_find(index, index + count, [](int32_t a, int32_t b) {
                          return a + int64_t{1} != b;
                        }) == index + count;
    if (count == kWordBits && is_run && index[0] + kWordBits <= input.end_channel)
      add_copy({input.source(from / kWordBits), from % kWordBits, out, 1});
    else
      add_join(out, index, count);
  }

  // Continues the last copy where the word is its next one.
  void add_copy(const Copy& copy) {
    if (!plan_.copies.empty()) {
      Copy& last = plan_.copies.back();
      if (last.out + last.count == copy.out && last.source.input == copy.source.input &&
          last.source.word + last.count == copy.source.word && last.shift == copy.shift) {
        ++last.count;
        return;
      }
    }
    plan_.copies.push_back(copy);
  }

  void add_join(int64_t out, const int32_t* index, int64_t count) {
    const int64_t first_term = plan_.terms.size();
    for (int64_t bit = 0; bit < count; ++bit) {
      const Input& input = input_of(index[bit]);
      const int64_t from = index[bit] - input.first_channel;
      const int64_t column = column_of(input, from / kWordBits);
      const int64_t left_shift = bit - from % kWordBits;
      const bool continues = static_cast<int64_t>(plan_.terms.size()) > first_term &&
                             plan_.terms.back().source == column &&
                             plan_.terms.back().left_shift == left_shift;
      if (!continues) plan_.terms.push_back({column, left_shift, 0});
      plan_.terms.back().mask |= Word{1} << bit;
    }
    // Kernels branch on the side: it changes once.
    std::partition(plan_.terms.begin() + first_term, plan_.terms.end(),
                   [](const Term& term) { return term.left_shift >= 0; });
    plan_.joins.push_back({out, first_term, static_cast<int64_t>(plan_.terms.size()) - first_term});
  }

  int64_t column_of(const Input& input, int64_t word) {
    int64_t& column = columns_[input.first_word + word];
    if (column == kNone) {
      column = plan_.columns.size();
      plan_.columns.push_back(input.source(word));
    }
    return column;
  }

  std::vector<Input> inputs_;
  int64_t channels_ = 0, words_ = 0;  // of all inputs
  std::vector<int64_t> columns_;      // of each word, or kNone
  Plan plan_;
};

typedef Word Words4 __attribute__((vector_size(16)));  // the compiler knows it on any CPU

// In parts of one, two or four words: a call of memcpy would take longer than most copies.
template <typename Part>
void copy_parts(const Copy& copy, int64_t first, int64_t positions, Word* to, int64_t to_step) {
  const Word* from = copy.source.at(first);
  for (int64_t p = 0; p < positions; ++p, from += copy.source.step, to += to_step)
    for (int64_t word = 0; word < copy.count; word += sizeof(Part) / sizeof(Word))
      std::memcpy(to + word, from + word, sizeof(Part));
}

void copy_shifted(const Copy& copy, int64_t first, int64_t positions, Word* to, int64_t to_step) {
  const Word* from = copy.source.at(first);
  for (int64_t p = 0; p < positions; ++p, from += copy.source.step, to += to_step)
    for (int64_t word = 0; word < copy.count; ++word)
      to[word] = from[word] >> copy.shift | from[word + 1] << (kWordBits - copy.shift);
}

auto copy_function(const Copy& copy) {
  if (copy.shift > 0) return copy_shifted;
  if (copy.count % 4 == 0) return copy_parts<Words4>;
  return copy.count % 2 == 0 ? copy_parts<uint64_t> : copy_parts<Word>;
}

}  // namespace

Tensor select_channels(const std::vector<Tensor>& inputs, const std::vector<int64_t>& channels,
                       const Tensor& index) {
  STD_TORCH_CHECK(!inputs.empty(), "inputs must not be empty");
  STD_TORCH_CHECK(inputs.size() == channels.size(), "inputs and channels differ in number");
  STD_TORCH_CHECK(index.dim() == 1, "index must have 1 dimension");
  std::vector<Tensor> sources;
  std::vector<int64_t> shape;
  for (size_t i = 0; i < inputs.size(); ++i) {
    sources.push_back(checked_packed(inputs[i], "inputs", channels[i], -1));
    std::vector<int64_t> leading = shape_of(inputs[i]);
    leading.pop_back();
    STD_TORCH_CHECK(i == 0 || leading == shape, "inputs must have the same leading dimensions");
    shape = leading;
  }
  int64_t positions = 1;
  for (const int64_t size : shape) positions *= size;

  const int64_t out_channels = index.size(0), words = word_count(out_channels);
  const Tensor indices = checked(index, "index", ScalarType::Int);
  const Plan plan = Planner(sources, channels)(data<int32_t>(indices), out_channels);
  shape.push_back(words);
  const Tensor out = new_tensor(shape, ScalarType::Int);
  Word* const to = mutable_data<Word>(out);

  const SelectKernels& level = kernels().select;
  const int64_t tasks = (positions + kSelectPositions - 1) / kSelectPositions;
  const int64_t work = positions * (words + plan.columns.size() + plan.terms.size());
  torch::stable::parallel_for(
      0, tasks, grain_for(tasks, work, kGrain), [&](int64_t begin, int64_t end) {
        std::vector<Word> room(plan.columns.size() * kSelectPositions);
        WordColumn* const columns = reinterpret_cast<WordColumn*>(room.data());
        for (int64_t task = begin; task < end; ++task) {
          const int64_t first = task * kSelectPositions;
          const int64_t count = std::min(kSelectPositions, positions - first);
          Word* const rows = to + first * words;
          for (const Copy& copy : plan.copies)
            copy_function(copy)(copy, first, count, rows + copy.out, words);
          for (size_t i = 0; i < plan.columns.size(); ++i) {
            const Source& source = plan.columns[i];
            for (int64_t p = 0; p < count; ++p) columns[i][p] = *source.at(first + p);
          }
          for (const Join& join : plan.joins) {
            WordColumn joined;
            level.join(columns, plan.terms.data() + join.first_term, join.term_count, joined);
            for (int64_t p = 0; p < count; ++p) rows[p * words + join.out] = joined[p];
          }
        }
      });
  return out;
}

}  // namespace bnn_ext::cpu

STABLE_TORCH_LIBRARY_IMPL(bnn_ext, CPU, m) {
  m.impl("select_channels", TORCH_BOX(&bnn_ext::cpu::select_channels));
}
