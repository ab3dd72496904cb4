"""``python -m fused_mi`` and the ``fused-mi`` command."""

import sys


def main() -> None:
    """``info`` needs no extra; everything else is the command line of the training example."""
    if sys.argv[1:] == ["info"]:
        from ._info import info

        print(info())
        return
    from .train.cli import app

    app()


if __name__ == "__main__":
    main()
