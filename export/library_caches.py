"""Where libraries keep what they made for the next time: in a folder that is removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from tempfile import TemporaryDirectory

from vicort.runtime.entry_points import BEFORE_LEAVING

# PyTorch's compiler, Triton, and Matplotlib's list of fonts. Unset, they write to the temporary
# folder and to the home folder.
VARIABLES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "MPLCONFIGDIR")


@contextmanager
def temporary_caches() -> Iterator[None]:
    """A folder that the user names in one of VARIABLES is used, and stays."""
    own = [name for name in VARIABLES if name not in os.environ]
    with TemporaryDirectory(prefix="vicort-") as folder:
        os.environ |= dict.fromkeys(own, folder)
        remove = partial(shutil.rmtree, folder, ignore_errors=True)
        BEFORE_LEAVING.append(remove)
        try:
            yield
        finally:
            BEFORE_LEAVING.remove(remove)
            for name in own:
                os.environ.pop(name, None)
