"""The package as it lies in this source tree, installed or not.

`setup.py` installs the folder triton_kernels/ as `fused_mi.triton_kernels`; a tree that nobody
installed needs the same mapping at run time.
"""

import importlib.abc
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_KERNELS = "fused_mi.triton_kernels"


class _KernelsOfTheTree(importlib.abc.MetaPathFinder):
    def __init__(self, root):
        self.root = root

    def find_spec(self, name, path=None, target=None):
        if name != _KERNELS:
            return None
        folder = self.root / "triton_kernels"
        return importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


def use(root=ROOT):
    """Let `import fused_mi` find the package of a tree, and the modules of tests/ that need torch
    only those of this one.

    Before anything that is installed: an editable installation may point to another tree. The first
    call decides."""
    if any(isinstance(finder, _KernelsOfTheTree) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _KernelsOfTheTree(root))
    sys.path[:0] = [str(root / "python"), str(ROOT / "tests")]
