// The Python module `bnn_ext._C_cuda`. Importing it loads the kernels, which register themselves.
#include <Python.h>

#include <stdexcept>

#include "cuda/path.cuh"

namespace {

PyObject* architectures(PyObject* /*module*/, PyObject* /*arguments*/) {
  return PyUnicode_FromString(BNN_EXT_CUDA_ARCHITECTURES);
}

PyObject* path(PyObject* /*module*/, PyObject* /*arguments*/) {
  return PyUnicode_FromString(bnn_ext::cuda::path_name());
}

PyObject* set_path(PyObject* /*module*/, PyObject* arguments) {
  const char* name;
  if (!PyArg_ParseTuple(arguments, "s", &name)) return nullptr;
  try {
    bnn_ext::cuda::set_path(name);
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"architectures", architectures, METH_NOARGS,
     "The GPU architectures that the kernels were built for, separated by semicolons."},
    {"path", path, METH_NOARGS, "The path that is forced in this process, or auto."},
    {"set_path", set_path, METH_VARARGS,
     "Forces a path of linear and conv2d in this process (for tests): auto, popc, gemv, mma, "
     "wgmma."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__C_cuda() {
  try {
    bnn_ext::cuda::path_name();  // a wrong BNN_EXT_CUDA_PATH fails here, at import
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
  return PyModule_Create(&module);
}
