"""The check of the project on a GPU, from a source tree: `python -m benchmarks.gpu --help`."""

from benchmarks import _source_tree

_source_tree.use()
