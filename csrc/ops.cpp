// The schema of every operator, and the Python module `bnn_ext._C`.
//
// Shapes, units and errors are documented at the wrappers in bnn_ext/ops; the kernels are
// registered by csrc/cpu/*.cpp here and by csrc/cuda/*.cu in `bnn_ext._C_cuda`.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include <stdexcept>

#include "cpu/kernels.h"

// Names, order and defaults of the arguments are those of the wrappers, which may so pass a call on
// as it is; dtype 6 is float32.
STABLE_TORCH_LIBRARY(bnn_ext, m) {
  m.def("pack(Tensor input, Tensor? threshold=None, Tensor? flip=None) -> Tensor");
  m.def("unpack(Tensor packed, int channels, ScalarType dtype) -> Tensor");
  m.def("flatten(Tensor packed, int channels) -> Tensor");
  m.def("select_channels(Tensor[] inputs, int[] channels, Tensor index) -> Tensor");

  m.def("tile_weight(Tensor weight, int groups=1) -> Tensor");

  m.def("linear(Tensor input, Tensor weight, int in_features, Tensor? tiles=None) -> Tensor");
  m.def(
      "linear_float(Tensor input, Tensor weight, int in_features, Tensor? scale=None, "
      "Tensor? bias=None, ScalarType dtype=6, Tensor? tiles=None) -> Tensor");
  m.def(
      "linear_bits(Tensor input, Tensor weight, int in_features, Tensor threshold, "
      "Tensor? flip=None, Tensor? tiles=None) -> Tensor");
  m.def(
      "linear_fused(Tensor input, Tensor weight, int in_features, int[] operations, "
      "Tensor[] operands, ScalarType? dtype, Tensor? threshold, Tensor? flip, Tensor? tiles=None) "
      "-> Tensor[]");

  m.def(
      "conv2d(Tensor input, Tensor weight, int in_channels, int[2] stride=1, int[2] padding=0, "
      "int[2] dilation=1, int groups=1, int pad_value=0, Tensor? tiles=None) -> Tensor");
  m.def(
      "conv2d_float(Tensor input, Tensor weight, int in_channels, int[2] stride=1, "
      "int[2] padding=0, int[2] dilation=1, int groups=1, int pad_value=0, Tensor? scale=None, "
      "Tensor? bias=None, ScalarType dtype=6, Tensor? tiles=None) -> Tensor");
  m.def(
      "conv2d_bits(Tensor input, Tensor weight, int in_channels, int[2] stride=1, "
      "int[2] padding=0, int[2] dilation=1, int groups=1, int pad_value=0, *, Tensor threshold, "
      "Tensor? flip=None, Tensor? tiles=None) -> Tensor");
  m.def(
      "conv2d_fused(Tensor input, Tensor weight, int in_channels, int[2] stride, int[2] padding, "
      "int[2] dilation, int groups, int pad_value, int[] operations, Tensor[] operands, "
      "ScalarType? dtype, Tensor? threshold, Tensor? flip, Tensor? tiles=None) -> Tensor[]");

  m.def(
      "binary_weight_linear(Tensor input, Tensor weight, int in_features, Tensor? scale=None, "
      "Tensor? bias=None, Tensor? tiles=None) -> Tensor");
  m.def(
      "binary_weight_linear_bits(Tensor input, Tensor weight, int in_features, Tensor threshold, "
      "Tensor? flip=None, Tensor? tiles=None) -> Tensor");

  m.def(
      "binary_weight_conv2d(Tensor input, Tensor weight, int in_channels, int[2] stride=1, "
      "int[2] padding=0, int[2] dilation=1, int groups=1, int pad_value=0, Tensor? scale=None, "
      "Tensor? bias=None, Tensor? tiles=None) -> Tensor");
  m.def(
      "binary_weight_conv2d_bits(Tensor input, Tensor weight, int in_channels, int[2] stride=1, "
      "int[2] padding=0, int[2] dilation=1, int groups=1, int pad_value=0, *, Tensor threshold, "
      "Tensor? flip=None, Tensor? tiles=None) -> Tensor");

  m.def(
      "elementwise(Tensor input, int[] operations, Tensor[] operands, ScalarType? dtype, "
      "Tensor? threshold, Tensor? flip) -> Tensor[]");

  m.def(
      "max_pool2d(Tensor input, int[2] kernel_size, int[2] stride, int[2] padding=0, "
      "int[2] dilation=1, bool ceil_mode=False, Tensor? minimum=None) -> Tensor");
  m.def(
      "max_pool2d_float(Tensor input, int[2] kernel_size, int[2] stride, int[2] padding=0, "
      "int[2] dilation=1, bool ceil_mode=False) -> Tensor");
  m.def(
      "avg_pool2d(Tensor input, int[2] kernel_size, int[2] stride, int[2] padding=0, "
      "bool ceil_mode=False, bool count_include_pad=True, int? divisor_override=None) -> Tensor");
  m.def("global_avg_pool2d(Tensor input) -> Tensor");

  // Of the quantizers in training; see bnn_ext/quantizers.py.
  m.def("sign(Tensor input) -> Tensor");
  m.def("stochastic_sign(Tensor input, Tensor seed) -> Tensor");
  m.def("straight_through(Tensor grad, Tensor input) -> Tensor");
  m.def("piecewise_quadratic(Tensor grad, Tensor input) -> Tensor");

  // Of convolutions in training; see bnn_ext/ops/gradients.py.
  m.def(
      "conv2d_weight_gradient(Tensor grad, Tensor input, int[2] kernel_size, int[2] stride, "
      "int[2] padding, int[2] dilation, int groups) -> Tensor");

  m.def("sequence(Tensor[] inputs, Tensor[] constants, str program) -> Tensor[]");
}

// --- bnn_ext._C
// -----------------------------------------------------------------------------------

namespace {

PyObject* cpu_capability(PyObject*, PyObject*) {
  return PyUnicode_FromString(bnn_ext::cpu::kernels().name);
}

PyObject* cpu_capabilities(PyObject*, PyObject*) {
  const std::vector<std::string> names = bnn_ext::cpu::supported_levels();
  PyObject* tuple = PyTuple_New(static_cast<Py_ssize_t>(names.size()));
  for (size_t i = 0; tuple && i < names.size(); ++i)
    PyTuple_SetItem(tuple, static_cast<Py_ssize_t>(i), PyUnicode_FromString(names[i].c_str()));
  return tuple;
}

PyObject* set_cpu_capability(PyObject*, PyObject* args) {
  const char* name;
  if (!PyArg_ParseTuple(args, "s", &name)) return nullptr;
  try {
    bnn_ext::cpu::set_level(name);
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
  Py_RETURN_NONE;
}

PyObject* register_peak(PyObject*, PyObject* args) {
  long long iterations;
  if (!PyArg_ParseTuple(args, "L", &iterations)) return nullptr;
  return PyLong_FromLongLong(bnn_ext::cpu::kernels().dot.register_peak(iterations));
}

PyObject* plain_peak(PyObject*, PyObject* args) {
  long long iterations;
  if (!PyArg_ParseTuple(args, "L", &iterations)) return nullptr;
  return PyLong_FromLongLong(bnn_ext::cpu::kernels().dot.plain_peak(iterations));
}

PyMethodDef methods[] = {
    {"cpu_capability", cpu_capability, METH_NOARGS, "The CPU level in use."},
    {"cpu_capabilities", cpu_capabilities, METH_NOARGS,
     "The CPU levels that this machine runs, slowest first."},
    {"set_cpu_capability", set_cpu_capability, METH_VARARGS,
     "Switches the CPU level in this process (for tests)."},
    {"register_peak", register_peak, METH_VARARGS,
     "Runs the level's inner step on registers only; returns the multiply-accumulates done."},
    {"plain_peak", plain_peak, METH_VARARGS,
     "The same for xor, popcount and addition of every word by itself."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

extern "C" PyMODINIT_FUNC PyInit__C() {
  try {
    bnn_ext::cpu::kernels();  // a wrong BNN_EXT_CPU_CAPABILITY fails here, at import
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
  return PyModule_Create(&module);
}
