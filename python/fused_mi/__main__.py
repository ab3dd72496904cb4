"""``python -m fused_mi`` is the ``fused-mi`` command."""

from .train.cli import app

if __name__ == "__main__":
    app()
