"""Text to token passages of one length, split into those for training, validation and test."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .config import BUILT_IN_TEXT, ConfigError
from .seeds import generator

HELD_OUT_SHARE = 0.1  # for validation, and as much for the test
MIN_TOKENS = 8  # shorter rests of a document say too little to have a sentence embedding


@dataclass(frozen=True)
class Passages:
    """``ids`` and masks, each (P, S); ``noise_mask`` leaves out special and padding tokens."""

    ids: Tensor
    attention_mask: Tensor
    noise_mask: Tensor

    def __len__(self) -> int:
        return self.ids.shape[0]

    def __getitem__(self, rows: Tensor | slice) -> Passages:
        return Passages(self.ids[rows], self.attention_mask[rows], self.noise_mask[rows])

    def to(self, device: str) -> Passages:
        return Passages(
            self.ids.to(device), self.attention_mask.to(device), self.noise_mask.to(device)
        )


@dataclass(frozen=True)
class Vocabulary:
    """The words that noise may stand on in a text, and how frequent they are in it."""

    words: Tensor  # (W,) token ids
    log_frequencies: Tensor  # (W,)
    row_of: Tensor  # (V,) where a token id stands in `words`; -1: nowhere
    counts: Tensor  # (V,) of token ids

    @classmethod
    def of(cls, passages: Passages, size: int) -> Vocabulary:
        """That of passages, of a tokenizer with `size` token ids."""
        counts = torch.bincount(passages.ids[passages.noise_mask], minlength=size)
        words = counts.nonzero()[:, 0]
        row_of = torch.full_like(counts, -1)
        row_of[words] = torch.arange(len(words), device=words.device)
        log_frequencies = (counts[words].double() / counts.sum()).log().float()
        return cls(words, log_frequencies, row_of, counts)

    def to(self, device: str) -> Vocabulary:
        return Vocabulary(*(t.to(device) for t in dataclasses.astuple(self)))


def read_documents(source: str) -> list[str]:
    """The documents of a file, of every text file below a folder, or of CPython's own reference."""
    if source == BUILT_IN_TEXT:
        from pydoc_data.topics import topics

        documents = [topics[name] for name in sorted(topics)]
    else:
        documents = [_read(path) for path in _files(Path(source).expanduser())]
    documents = [" ".join(document.split()) for document in documents]
    documents = [document for document in documents if document]
    if not documents:
        raise ConfigError(f"--text {source}: there is no text in it")
    return documents


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        texts = (f for f in path.rglob("*") if f.suffix in {".txt", ".md", ".rst"})
        files = sorted(f for f in texts if f.is_file())  # no folders, no links to nothing
        if not files:
            raise ConfigError(f"--text {path}: the folder holds no .txt, .md or .rst file")
        return files
    if not path.exists():
        raise ConfigError(f"--text {path}: no such file or folder")
    return [path]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"--text {path}: the file is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"--text {path}: {error.strerror}") from None


def cut(tokenizer: Any, documents: list[str], seq_len: int) -> Passages:
    """Distinct windows of ``seq_len`` tokens, special tokens included, and their masks."""
    encoded = tokenizer(
        documents,
        max_length=seq_len,
        truncation=True,
        return_overflowing_tokens=True,
        return_special_tokens_mask=True,
    )

    def padded(name: str, value: int) -> Tensor:
        # By hand: not every tokenizer has a token for it, and some pad on the left.
        return torch.tensor([row + [value] * (seq_len - len(row)) for row in encoded[name]])

    ids = padded("input_ids", tokenizer.pad_token_id or 0)
    attention = padded("attention_mask", 0).bool()
    noise = attention & ~padded("special_tokens_mask", 1).bool()
    enough = noise.sum(1) >= min(MIN_TOKENS, seq_len // 2)
    first: dict[tuple[int, ...], int] = {}
    for row in enough.nonzero().flatten().tolist():
        # A duplicate could stand in both the training and the held-out part.
        first.setdefault(tuple(ids[row].tolist()), row)
    rows = torch.tensor(list(first.values()), dtype=torch.long)
    return Passages(ids[rows], attention[rows], noise[rows])


class Splits(NamedTuple):
    """Disjoint passages: a layer is trained on ``train``, what is chosen (alpha, the sigma of a
    baseline) is chosen on ``validation``, and what is reported is measured on ``test``."""

    train: Passages
    validation: Passages
    test: Passages


def split(passages: Passages, seed: int, batch_size: int) -> Splits:
    """Fixed by the seed; validation and test are equally many, an even number."""
    order = torch.randperm(len(passages), generator=generator("cpu", seed, "split"))
    held_out = max(4, int(len(passages) * HELD_OUT_SHARE)) // 2 * 2
    if len(passages) - 2 * held_out < batch_size:
        raise ConfigError(
            f"--text gives {len(passages)} passages, {2 * held_out} of them for validation and "
            f"test: too few for --batch-size {batch_size}"
        )
    test, validation, train = order.split([held_out, held_out, len(order) - 2 * held_out])
    return Splits(passages[train], passages[validation], passages[test])


def batch_rows(count: int, batch_size: int, seed: int, step: int) -> Tensor:
    """The rows (B,) of one step; each epoch is a new permutation, so the step says it all."""
    epoch, position = divmod(step, count // batch_size)
    order = torch.randperm(count, generator=generator("cpu", seed, "epoch", epoch))
    return order[position * batch_size : (position + 1) * batch_size]
