"""Who takes part in a case: our backends, the peers, and a bound.

Each makes a `Run` from inputs (mu, sigma, mask, x, y) or raises what keeps it from the case.
"""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import fused_mi
import torch
from torch import Tensor

from .cases import ALL, FLOATING, Case
from .machine import available_memory
from .measure import Run
from .peers import PEERS, Peer

Inputs = Sequence[Tensor]


class Refused(Exception):
    """A contestant does not serve a case, for this reason."""


class Contestant(NamedTuple):
    name: str
    kind: str  # "backend", "kernels", "peer" or "bound"
    make: Callable[[Inputs], Run]


def inputs_of(case: Case, device: str, seed: int = 0) -> list[Tensor]:
    """Random ones; in every row as many positions are active, the first one among them."""
    generator = torch.Generator(device).manual_seed(seed)
    options = {"dtype": getattr(torch, case.dtype), "device": device}
    means, stds, clean, noisy = (torch.empty(case.shape, **options) for _ in range(4))
    means.normal_(generator=generator).mul_(0.3)
    stds.uniform_(0.5, 1.5, generator=generator)
    clean.normal_(generator=generator)
    noisy.normal_(generator=generator).mul_(stds).add_(means).add_(clean)
    mask = torch.ones(case.shape[:2], dtype=torch.bool, device=device)
    if case.offset:
        for t in (clean, noisy):
            t[..., ::64] += case.offset
    if case.active < case.S:
        order = torch.rand(case.shape[:2], generator=torch.Generator().manual_seed(seed))
        order[:, 0] = -1
        mask = (order.argsort(1).argsort(1) < case.active).to(device)
    return [means, stds, mask, clean, noisy]


def of(case: Case, device: str, most_work: float, without_peers: bool = False) -> list[Contestant]:
    """All of them, those that cannot run included. The first usable backend is ours; without peers
    it is alone on a GPU, where plain torch takes most of the time."""
    found = [_backend(case, name, most_work) for name in backends(device)]
    if without_peers:
        return found[:1] if device == "cuda" else found
    if case.wanted:
        found.append(Contestant("bound: reads, fresh gradients", "bound", partial(bound, case)))
    peers = (peer for peer in PEERS if case.compiled or not peer.compiled)
    return found + [_peer(case, peer, device, most_work) for peer in peers]


def backends(device: str) -> list[str]:
    """Those of the package that can be used, the fastest first; Triton's interpreter is no way to
    use one."""
    usable = [backend.name for backend in fused_mi.backends() if backend.usable]
    return [name for name in usable if name != "triton" or device != "cpu"]


def loss_of(case: Case, combine: bool = True) -> Callable[..., Tensor]:
    """The public function of a case, summed over the samples."""
    options: dict[str, Any] = {"estimator": case.estimator, "reduction": "sum"}
    pairing: Any = case.pairing

    def loss(mu: Tensor, sigma: Tensor, mask: Tensor, x: Tensor, y: Tensor) -> Tensor:
        if case.information:
            return fused_mi.mutual_information_sub_batch(
                mu, sigma, mask, x, y, combine, pairing=pairing, **options
            )
        ((new, old),) = case.directions
        return fused_mi.gaussian_mixture_entropy(
            x[old], y[new], mu[old], sigma[old], mask[new], component_mask=mask[old], **options
        )

    return loss


def run_of(
    case: Case,
    function: Callable[..., Tensor],
    inputs: Inputs,
    around: Callable[[], Any] = contextlib.nullcontext,
) -> Run:
    """Both passes of a loss; leaves share the memory of the inputs."""
    flags = {i: name in case.wanted for i, name in zip(FLOATING, ALL, strict=True)}
    leaves = [t.detach().requires_grad_(flags.get(i, False)) for i, t in enumerate(inputs)]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]

    def run() -> tuple[Tensor, Callable[[], Sequence[Tensor]]]:
        with around():
            value = function(*leaves)

        def backward() -> Sequence[Tensor]:
            with around():
                return torch.autograd.grad(value, wanted) if wanted else ()

        return value, backward

    return run


def _backend(case: Case, name: str, most_work: float) -> Contestant:
    def make(inputs: Inputs) -> Run:
        if name == "reference" and case.estimator == "logsumexp":
            _refuse_long(case.pair_elements, most_work)
        return run_of(case, loss_of(case), inputs, lambda: fused_mi.use_backend(name))

    return Contestant(name, "backend", make)


def _refuse_long(work: float, most_work: float) -> None:
    if work > most_work:
        raise Refused(f"{work:.1e} pairs times features: more than the suite has time for")


def _peer(case: Case, peer: Peer, device: str, most_work: float) -> Contestant:
    def make(inputs: Inputs) -> Run:
        if reason := peer.why_not(case):
            raise Refused(reason)
        _refuse_long(peer.work * case.pair_elements, most_work)
        needed, available = peer.held(case) * max(4, case.itemsize), available_memory(device)
        # Where memory is overcommitted nothing raises: the process would be killed.
        if device == "cpu" and needed > 0.7 * available:
            said = f"needs about {needed / 2**30:.0f} GiB, {available / 2**30:.0f} GiB are free"
            raise MemoryError(said)
        options = case.estimator, case.directions, case.information
        return run_of(case, lambda *t: peer.loss(*t, *options), inputs)

    return Contestant(peer.name, "peer", make)


def bound(case: Case, inputs: Inputs) -> Run:
    """What a call cannot avoid in this framework: the reads of the passes, gradients in new memory.
    No formula is computed, so there is nothing to check."""
    mu, sigma, _, x, y = inputs
    samples, components = case.directions[0]
    if case.pairing == "symmetric":
        samples = components = slice(None)
    stds = sigma if case.information else sigma[components]
    reads = [y[samples], x[components], mu[components], stds]
    gradients = [inputs[FLOATING[ALL.index(name)]] for name in case.wanted]

    def run() -> tuple[Tensor, Callable[[], Sequence[Tensor]]]:
        value = torch.stack([t.sum() for t in (stds, *reads)]).sum()

        def backward() -> Sequence[Tensor]:
            for t in reads:
                t.sum()
            return [torch.empty_like(t).fill_(0) for t in gradients]

        return value, backward

    return run
