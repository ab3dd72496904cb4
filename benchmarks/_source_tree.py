"""The package as it lies in this source tree, installed or not.

`setup.py` installs the folder triton_kernels/ as `fused_mi.triton_kernels`; a tree that nobody
installed needs the same mapping at run time.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def use(root: Path = ROOT) -> None:
    """Import `fused_mi` from a tree, whatever is installed: an editable installation may point to
    another one. The first import decides."""
    if "fused_mi" in sys.modules:
        return
    sys.path.insert(0, str(root / "python"))
    import fused_mi

    fused_mi.__path__.append(str(root))  # where its triton_kernels are
