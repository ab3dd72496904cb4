"""`torch.compile` of another peer."""

import functools
import shutil

import torch


def of(peer):
    return peer._replace(
        name=peer.name.replace("eager", "compiled"),
        loss=_compiled(peer.loss),
        why_not=lambda case: peer.why_not(case) or _no_compiler(),
        temporary=lambda case: peer.temporary(case) / 5,  # where it fuses, less
        compiled=True,
    )


def _compiled(loss):
    """Compiled when it is called first, once for each shape."""

    @functools.cache
    def function():
        return torch.compile(loss, fullgraph=True, dynamic=False)

    return lambda *arguments, **options: function()(*arguments, **options)


def _no_compiler():
    if not torch.cuda.is_available() and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        return "not installed: torch.compile needs a C++ compiler"
    return None
