"""What the bench computes does not depend on the defaults that a user has set."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def cpu_float32() -> Iterator[None]:
    """Make new tensors float32 and on the CPU in here, whatever default dtype and device are set outside.

    Serves as a decorator too. The defaults outside come back, also after an error.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)
