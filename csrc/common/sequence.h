// A planned sequence of operators in one call: nothing of Python or of torch's dispatcher stands
// between two of them.
//
// A program is text, decimal numbers with a space between them; bnn_ext/ops/sequence.py writes it:
//
//   program = count of calls, calls, list of outputs
//   call    = number of the operator, its arguments in the order of its function (operators.inl),
//             list of values to free afterwards
//   list    = count, elements
//
// A tensor is the number of a value, -1 for none: first come the inputs, then the constants, then
// the results in the order in which calls give them. A dtype is torch's number for it, -1 for none.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <charconv>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "common/permuted.h"
#include "common/torch_linear.h"

namespace bnn_ext::sequence {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Value = std::optional<Tensor>;  // none once it is freed

constexpr int64_t kNone = -1;

// Reads a program, which may be any text at all: every number is checked before it is used.
class Reader {
 public:
  Reader(const std::string& program, std::vector<Value> values)
      : at_(program.data()), end_(at_ + program.size()), values_(std::move(values)) {}

  // One argument of an operator, of the type that its C++ function takes.
  template <typename T>
  T read() {
    if constexpr (std::is_same_v<T, int64_t>) {
      return number();
    } else if constexpr (std::is_same_v<T, bool>) {
      return number() != 0;
    } else if constexpr (std::is_same_v<T, ScalarType>) {
      return dtype(number());
    } else if constexpr (std::is_same_v<T, std::optional<ScalarType>>) {
      const int64_t which = number();
      return which == kNone ? std::nullopt : T(dtype(which));
    } else if constexpr (std::is_same_v<T, std::optional<int64_t>>) {
      const int64_t value = number();
      return value == kNone ? std::nullopt : T(value);
    } else if constexpr (std::is_same_v<T, Tensor>) {
      return *value(number());
    } else if constexpr (std::is_same_v<T, std::optional<Tensor>>) {
      const int64_t which = number();
      return which == kNone ? std::nullopt : value(which);
    } else {  // a list
      T list;
      const int64_t size = count();
      list.reserve(size);
      for (int64_t i = 0; i < size; ++i) list.push_back(read<typename T::value_type>());
      return list;
    }
  }

  int64_t count() {
    const int64_t result = number();
    STD_TORCH_CHECK(0 <= result && result <= end_ - at_, "program ends before ", result,
                    " elements");
    return result;
  }

  void add(Tensor result) { values_.emplace_back(std::move(result)); }

  void add(std::vector<Tensor> results) {
    for (Tensor& result : results) add(std::move(result));
  }

  void free_values() {
    for (int64_t i = count(); i > 0; --i) value(number()).reset();
  }

  void expect_end() const { STD_TORCH_CHECK(at_ == end_, "program goes on after its outputs"); }

 private:
  int64_t number() {
    if (at_ < end_ && *at_ == ' ') ++at_;
    int64_t result;
    const auto [after, error] = std::from_chars(at_, end_, result);
    STD_TORCH_CHECK(error == std::errc(), "program must be numbers with a space between them");
    at_ = after;
    return result;
  }

  Value& value(int64_t which) {
    STD_TORCH_CHECK(0 <= which && which < static_cast<int64_t>(values_.size()) && values_[which],
                    "program uses value ", which, ", which is not there");
    return values_[which];
  }

  static ScalarType dtype(int64_t which) {
    STD_TORCH_CHECK(0 <= which && which < static_cast<int64_t>(ScalarType::NumOptions),
                    "program uses dtype ", which, ", which there is not");
    return static_cast<ScalarType>(which);
  }

  const char* at_;
  const char* const end_;
  std::vector<Value> values_;
};

// Reads an operator's arguments and calls its function.
template <typename Result, typename... Args>
void call(Reader& reader, Result (*function)(Args...)) {
  // Braces read the arguments from left to right.
  const std::tuple<std::decay_t<Args>...> arguments{reader.read<std::decay_t<Args>>()...};
  reader.add(std::apply(function, arguments));
}

template <auto function>
void call(Reader& reader) {
  call(reader, function);
}

using Operator = void (*)(Reader&);

template <int64_t operator_count>
std::vector<Tensor> run(const Operator (&operators)[operator_count],
                        const std::vector<Tensor>& inputs, const std::vector<Tensor>& constants,
                        const std::string& program) {
  std::vector<Value> values(inputs.begin(), inputs.end());
  values.insert(values.end(), constants.begin(), constants.end());
  Reader reader(program, std::move(values));
  for (int64_t calls = reader.count(); calls > 0; --calls) {
    const int64_t which = reader.read<int64_t>();
    STD_TORCH_CHECK(0 <= which && which < operator_count, "program calls operator ", which,
                    ", which there is not");
    operators[which](reader);
    reader.free_values();
  }
  std::vector<Tensor> outputs = reader.read<std::vector<Tensor>>();
  reader.expect_end();
  return outputs;
}

}  // namespace bnn_ext::sequence
