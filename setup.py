"""Builds the compiled operators; everything else about the package stands in pyproject.toml.

`bnn_ext._C`, the CPU operators, is always built. `bnn_ext._C_cuda`, the CUDA operators, is built
where a CUDA toolkit and a CUDA build of torch are found; no GPU is needed. Both keep to LibTorch's
stable ABI and Python's limited API: one binary runs under every torch >= 2.10 and Python >= 3.10.

Environment variables:
    BNN_EXT_CUDA: 0 leaves the CUDA operators out, 1 fails where they cannot be built.
    BNN_EXT_SANITIZE: 1 adds AddressSanitizer and UndefinedBehaviorSanitizer to the CPU operators.
    CUDA_HOME: the CUDA toolkit, a folder with bin/nvcc and include/cuda_runtime.h.
    TORCH_CUDA_ARCH_LIST: the GPU architectures to compile for, in torch's notation.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools

try:
    import torch
except ModuleNotFoundError:
    raise SystemExit("building bnn_ext needs torch 2.10 or newer, found none; install it") from None


def version(text: str) -> list[int]:
    return [int(part) for part in text.split(".")[:2]]


for package, least in ((torch, "2.10"), (setuptools, "77.0")):
    found = package.__version__
    if version(found) < version(least):
        raise SystemExit(
            f"building bnn_ext needs {package.__name__} {least} or newer, found {found}; upgrade it"
        )


def find_cuda_home() -> Path:
    """The CUDA toolkit to build with; a RuntimeError says what is missing and what to do."""
    if torch.version.cuda is None:
        raise RuntimeError(f"torch {torch.__version__} is a CPU build; install a CUDA build of it")

    homes = [Path("/usr/local/cuda")]
    if os.environ.get("CUDA_HOME"):
        homes = [Path(os.environ["CUDA_HOME"])]
    elif nvcc := shutil.which("nvcc"):
        # It may be a wrapper script far from the toolkit, but a dry run prints where that lies.
        dry_run = [nvcc, "--dryrun", "-x", "cu", os.devnull]
        steps = subprocess.run(dry_run, capture_output=True, text=True).stderr
        tops = re.findall(r"^#\$ TOP=(.+)$", steps, re.MULTILINE)
        homes = [*map(Path, tops), Path(nvcc).parents[1], *homes]

    for home in map(Path.resolve, homes):
        if (home / "bin/nvcc").exists() and (home / "include/cuda_runtime.h").exists():
            break
    else:
        raise RuntimeError(
            "no CUDA toolkit (bin/nvcc and include/cuda_runtime.h) in "
            f"{' or '.join(map(str, homes))}; set CUDA_HOME to the folder of one"
        )

    banner = subprocess.run([home / "bin/nvcc", "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.\d+", banner)
    if release is None or release[1] != torch.version.cuda.split(".")[0]:
        raise RuntimeError(
            f"torch {torch.__version__} is built with CUDA {torch.version.cuda}, but the toolkit "
            f"in {home} is {release and release[0]}; set CUDA_HOME to one of the same major version"
        )
    return home


with_cuda = os.environ.get("BNN_EXT_CUDA") != "0"
if with_cuda:
    try:
        os.environ["CUDA_HOME"] = str(find_cuda_home())
    except RuntimeError as error:
        if os.environ.get("BNN_EXT_CUDA") == "1":
            raise SystemExit(
                f"BNN_EXT_CUDA=1, but CUDA operators cannot be built: {error}"
            ) from None
        print(f"bnn_ext is built without CUDA operators: {error}", file=sys.stderr)
        with_cuda = False

from torch.utils import cpp_extension  # noqa: E402  (reads CUDA_HOME when it is imported)


class build_ext(cpp_extension.BuildExtension):  # setuptools goes by the name of the class
    def run(self) -> None:
        compiler = cpp_extension.get_cxx_compiler()
        if shutil.which(compiler) is None:
            raise SystemExit(
                f"bnn_ext needs a C++ compiler to build, but {compiler} is not on PATH; "
                "install one (g++, clang++) or set CXX"
            )
        if not with_cuda:  # those of an earlier build would be packed and imported all the same
            package = Path("." if self.inplace else self.build_lib, "bnn_ext")
            (package / "_C_cuda.abi3.so").unlink(missing_ok=True)
        super().run()


def sources(*patterns: str) -> list[str]:
    return sorted(str(path) for pattern in patterns for path in Path("csrc").glob(pattern))


include = os.path.abspath("csrc")
torch_abi = ("TORCH_TARGET_VERSION", "0x020a000000000000")  # nothing newer than torch 2.10
cxx_flags = ["-std=c++17", "-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden"]
sanitizers = []
if os.environ.get("BNN_EXT_SANITIZE") == "1":
    sanitizers = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
extensions = [
    cpp_extension.CppExtension(
        "bnn_ext._C",
        sources("*.cpp", "cpu/*.cpp"),
        include_dirs=[include],
        define_macros=[torch_abi],
        extra_compile_args=[*cxx_flags, "-Wall", "-Wextra", *sanitizers],
        extra_link_args=sanitizers,
        py_limited_api=True,
    )
]
if with_cuda:
    # Newer GPUs compile the PTX of 8.9 when they load it, since code of 9.0a runs on Hopper alone.
    # PTX of 9.0 would come with code of 9.0, which Hopper could take instead of that of 9.0a.
    architectures = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "7.5;8.0;8.6;8.9+PTX;9.0a")
    names = architectures.replace(".", "")
    cuda = cpp_extension.CUDAExtension(
        "bnn_ext._C_cuda",
        sources("cuda/*.cu"),
        include_dirs=[include],
        define_macros=[torch_abi, ("USE_CUDA", None), ("BNN_EXT_CUDA_ARCHITECTURES", f'"{names}"')],
        extra_compile_args={"nvcc": ["-std=c++17", "-O3", "-Xcompiler=-fvisibility=hidden"]},
        libraries=["cudart_static", "rt", "pthread", "dl"],
        py_limited_api=True,
    )
    cuda.libraries.remove("cudart")  # linked statically: torch may come with that of another CUDA
    extensions.append(cuda)

# ninja may lie beside a Python whose environment is not activated.
os.environ["PATH"] += os.pathsep + sysconfig.get_path("scripts")

setuptools.setup(
    ext_modules=extensions,
    cmdclass={"build_ext": build_ext},
    options={
        "build_ext": {"build_temp": "build/objects"},  # kept, so that ninja rebuilds only changes
        "bdist_wheel": {"py_limited_api": "cp310"},
    },
)
