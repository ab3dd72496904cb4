"""What an installed wheel has to do where no source tree is: `make wheel` runs it in a new
environment, outside of the tree. One loss on the CPU library, the same one in plain torch.
"""

import importlib.metadata
import sys
from pathlib import Path

import fused_mi
import torch


def loss(backend: str) -> tuple[float, torch.Tensor]:
    """The value and the gradient to the stds, of always the same inputs."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 8, 4, 24, generator=generator)
    stds = torch.full_like(x, 0.5, requires_grad=True)
    mask = torch.ones(8, 4, dtype=torch.bool)
    with fused_mi.use_backend(backend):  # type: ignore[arg-type]
        value = fused_mi.mutual_information_sub_batch(torch.zeros_like(x), stds, mask, x, y)
        value.backward()
    assert stds.grad is not None
    return value.item(), stds.grad


def main() -> None:
    tree = Path(__file__).resolve().parent.parent
    for module in (fused_mi, torch):
        file = Path(module.__file__).resolve()
        assert file.is_relative_to(Path(sys.prefix).resolve()), f"imported from elsewhere: {file}"
    files = importlib.metadata.files("fused-mi") or []
    libraries = [file for file in files if file.suffix == ".so"]
    assert [f.name for f in libraries if "cpu" in f.name] == ["libfused_mi_cpu.so"], libraries
    top = {file.parts[0] for file in files if ".." not in file.parts}
    assert {name.split("-")[0] for name in top} == {"fused_mi"}, top
    for library in libraries:
        content = Path(str(library.locate())).read_bytes()
        assert str(tree).encode() not in content, f"{library} names {tree}"
    value, gradient = loss("cpu")
    plain, want = loss("reference")
    assert abs(value - plain) <= 1e-5 * abs(plain), (value, plain)
    torch.testing.assert_close(gradient, want)
    told = importlib.metadata.distribution("fused-mi").read_text("WHEEL") or ""
    tags = [line.removeprefix("Tag: ") for line in told.splitlines() if line.startswith("Tag: ")]
    kib = {file.name: (file.size or 0) // 1024 for file in libraries}
    print(f"fused_mi {fused_mi.__version__} ({', '.join(tags)}), libraries in KiB: {kib}")
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}: {value:.6f}, {plain:.6f}")


if __name__ == "__main__":
    main()
