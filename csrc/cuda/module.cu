// The Python module `bnn_ext._C_cuda`. Importing it loads the kernels, which register themselves.
#include <Python.h>

namespace {

PyObject* architectures(PyObject* /*module*/, PyObject* /*arguments*/) {
  return PyUnicode_FromString(BNN_EXT_CUDA_ARCHITECTURES);
}

PyMethodDef methods[] = {
    {"architectures", architectures, METH_NOARGS,
     "The GPU architectures that the kernels were built for, separated by semicolons."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__C_cuda() { return PyModule_Create(&module); }
