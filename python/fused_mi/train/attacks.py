"""Attackers who try to read each noised token back from y:

- ``nearest``: the nearest row of the embedding table, knowing nothing about the layer;
- ``informed``: knowing the whole layer, the word v whose density N(y; x_v + mu_v, sigma_v) is
  highest;
- ``posterior``: the same, weighted with the word frequencies of the training text. Of all guesses
  from one embedding it is right most often, if the frequencies hold;
- ``neighbours``: the same with the embeddings of the whole passage, by a bigram model of the
  training text.

For isotropic noise the first two are the same attack.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fused_mi import pairwise_square_mahalanobis_distance

from .noise import IsotropicNoise
from .text import Passages, Vocabulary

ATTACKS = ("nearest", "informed", "posterior", "neighbours")
_PASSAGES = 16  # at once: 16 * S * V numbers of memory, a few times
_SHORTLIST = 16  # rows of the table among which distances are exact
_SMALLEST = 1e-30
_SHARE, _ROUNDS = 0.1, 20  # of the training text, on which bigrams are weighed; of that weighing


@dataclass(frozen=True)
class Bigrams:
    """p(w'|w), frequencies of pairs interpolated with those of single words (Jelinek and Mercer,
    1980)."""

    pairs: Tensor  # (V, V) sparse, rows add up to 1 or are empty
    weight: Tensor  # (V,) of the pairs after a word; the rest has the single words
    single: Tensor  # (V,)

    @classmethod
    def of(cls, passages: Passages, single: Tensor) -> Bigrams:
        """Of training passages; `single` (V,) are the frequencies of words."""
        kept = max(1, int(len(passages) * (1 - _SHARE)))
        before, after = _pairs(passages[slice(0, kept)])
        size = len(single)
        counts = _matrix(torch.stack((before, after)), torch.ones(len(before)).to(single), size)
        totals = torch.zeros_like(single).index_add_(0, before, torch.ones(len(before)).to(single))
        rows, columns = counts.indices()
        shares = counts.values() / totals[rows]
        pairs = _matrix(counts.indices(), shares, size)
        # What the rest of the text says about the pairs, by expectation and maximisation.
        before, after = _pairs(passages[slice(kept, None)])
        known = totals[before] > 0
        before, after = before[known], after[known]
        keys = rows * size + columns
        weight = 0.5
        if len(before) and len(keys):
            place = torch.searchsorted(keys, before * size + after).clamp(max=len(keys) - 1)
            of_pairs = torch.where(keys[place] == before * size + after, shares[place], 0)
            for _ in range(_ROUNDS):
                part = weight * of_pairs
                weight = float((part / (part + (1 - weight) * single[after])).mean())
        return cls(pairs, (totals > 0).to(single) * weight, single)

    def posterior(self, likelihood: Tensor) -> Tensor:
        """Of the words of P sequences (S, V, P), given their likelihoods in each place, whose
        largest is 1: forward and backward (Baum and others, 1970)."""
        single, weight = self.single[:, None], self.weight[:, None]
        forward = [_normal(likelihood[0] * single)]
        for here in likelihood[1:]:
            last = forward[-1]
            alone = (last * (1 - weight)).sum(0) * single
            forward.append(_normal((self.pairs.T @ (last * weight) + alone) * here))
        backward = torch.ones_like(forward[-1])
        found = [forward[-1]]
        for here, before in zip(likelihood[1:].flip(0), forward[-2::-1], strict=True):
            then = here * backward
            alone = (1 - weight) * (then * single).sum(0)
            backward = _normal(weight * (self.pairs @ then) + alone)
            found.append(_normal(before * backward))
        return torch.stack(found[::-1])


@dataclass(frozen=True)
class Neighbours:
    """The attacker of that name. The words that the training text does not have follow each other
    as if they were one: among them frequencies decide, and a chain of fewer words is as exact."""

    words: Tensor  # (W,) of the training text
    rest: Tensor  # (V - W,)
    single: Tensor  # (V,) frequencies
    bigrams: Bigrams  # of W + 1 words, the last of which stands for the rest

    @classmethod
    def of(cls, passages: Passages, vocabulary: Vocabulary, single: Tensor) -> Neighbours:
        """That knows the training passages and their vocabulary; `single` (V,) are the frequencies
        of words."""
        words, unseen = vocabulary.words, vocabulary.row_of < 0
        rest, row_of = unseen.nonzero()[:, 0], vocabulary.row_of.masked_fill(unseen, len(words))
        chain = Passages(row_of[passages.ids], passages.attention_mask, passages.noise_mask)
        of_chain = torch.cat((single[words], single[rest].sum(0, keepdim=True)))
        return cls(words, rest, single, Bigrams.of(chain, of_chain))

    def names(self, densities: Tensor, mask: Tensor) -> Tensor:
        """Words (T,) for the noised tokens of passages with this noise mask (P, S), of the logs of
        their densities (T, V)."""
        likelihood = (densities - densities.amax(1, keepdim=True)).exp()
        of_rest = likelihood[:, self.rest] * self.single[self.rest]
        of_all = of_rest.sum(1, keepdim=True) / self.bigrams.single[-1].clamp(min=_SMALLEST)
        # Where there is no noise, nothing is known of the word, and nothing is asked.
        chain = likelihood.new_ones((*mask.shape, len(self.words) + 1))
        chain[mask] = torch.cat((likelihood[:, self.words], of_all), 1)
        chances = self.bigrams.posterior(chain.permute(1, 2, 0).contiguous()).permute(2, 0, 1)[mask]
        known, word = chances[:, :-1].max(1)
        if not len(self.rest):
            return self.words[word]
        most, other = of_rest.max(1)
        unknown = chances[:, -1] * most / of_rest.sum(1).clamp(min=_SMALLEST)
        return torch.where(known >= unknown, self.words[word], self.rest[other])


def _pairs(passages: Passages) -> tuple[Tensor, Tensor]:
    """Words and those after them."""
    here = passages.noise_mask[:, :-1] & passages.noise_mask[:, 1:]
    return passages.ids[:, :-1][here], passages.ids[:, 1:][here]


def _matrix(indices: Tensor, values: Tensor, size: int) -> Tensor:
    sizes = size, size
    return torch.sparse_coo_tensor(indices, values, sizes, check_invariants=True).coalesce()


def _normal(weights: Tensor) -> Tensor:
    """(V, P), each P relative to its sum; without numbers so small that arithmetic is slow."""
    shares = weights / weights.sum(0).clamp(min=_SMALLEST)
    return torch.where(shares > _SMALLEST, shares, 0)


class Densities:
    """log N(y; center_v, diag sigma_v^2) for every word v, up to a constant; exact differences."""

    def __init__(self, centers: Tensor, sigma: Tensor) -> None:
        self.centers, self.sigma = centers, sigma  # (V, E)
        self.logs = sigma.log().sum(1)  # (V,)

    def __call__(self, y: Tensor) -> Tensor:
        """(T, E) -> (T, V)."""
        everywhere = y.new_ones(len(y), dtype=torch.bool)
        q = pairwise_square_mahalanobis_distance(y, self.centers, self.sigma, everywhere)
        return -q - self.logs


def nearest(y: Tensor, table: Tensor) -> Tensor:
    """The row (T,) of the table (V, E) that is nearest to each of y (T, E): by differences, of
    those that expanded squares, which cost a fifth, put first."""
    shift = table.mean(0)  # of which expanded squares lose digits
    rows = table - shift
    products = (y - shift) @ rows.T - rows.square().sum(1) / 2
    near = products.topk(min(_SHORTLIST, len(table))).indices
    distances = (y[:, None] - table[near]).square().sum(-1)
    return near.gather(1, distances.argmin(1, keepdim=True))[:, 0]


@torch.no_grad()
def guesses(
    layer: nn.Module, y: Tensor, passages: Passages, table: Tensor, neighbours: Neighbours
) -> dict[str, Tensor]:
    """What each attacker names (T,) for the noised tokens of y (P, S, E)."""
    mu, sigma = layer.parameters_of(table)  # type: ignore[operator]
    informed = Densities(table + mu, sigma)
    found: dict[str, list[Tensor]] = {name: [] for name in ATTACKS}
    log_prior = neighbours.single.log()
    for start in range(0, len(passages), _PASSAGES):
        here = slice(start, start + _PASSAGES)
        mask = passages.noise_mask[here]
        rows = y[here][mask]
        densities = informed(rows)
        # Of isotropic noise the nearest and the most likely word are the same.
        same = isinstance(layer, IsotropicNoise)
        found["nearest"].append(densities.argmax(1) if same else nearest(rows, table))
        found["informed"].append(densities.argmax(1))
        found["posterior"].append((densities + log_prior).argmax(1))
        found["neighbours"].append(neighbours.names(densities, mask))
    return {name: torch.cat(parts) for name, parts in found.items()}
