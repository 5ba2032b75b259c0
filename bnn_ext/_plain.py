"""Where kernels of ours may stand in for calls of torch: the values are the same, it is faster."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


def is_plain(*tensors: Tensor) -> bool:
    """Whether these are plain float32 tensors on the CPU, with nothing else watching.

    What traces, compiles, fakes or counts operators shall see torch's.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not is_in_torch_dispatch_mode()
        and all(
            type(tensor) in (Tensor, nn.Parameter)
            and tensor.is_cpu
            and tensor.dtype == torch.float32
            for tensor in tensors
        )
    )
