"""``fused-mi train``: options in, one clear line and exit code 2 for anything wrong with them."""

from __future__ import annotations

import importlib.util
import io
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

EXTRA = ("typer", "rich", "transformers", "accelerate", "safetensors", "tensorboard", "matplotlib")
_MISSING = [name for name in EXTRA if importlib.util.find_spec(name) is None]


def fail(message: str, code: int = 2) -> NoReturn:
    if os.environ.get("RANK", "0") == "0":  # the others would say the same
        print("fused-mi: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)


if _MISSING:

    def app() -> NoReturn:
        """Stands in for the command line where the extra is not installed."""
        fail(f"{', '.join(_MISSING)} missing: in a clone, pip install '.[train]'")

else:
    import typer

    from .. import _version
    from .config import ConfigError, TrainConfig, TrainingError, objectives_of

    class _App(typer.Typer):
        """Typer, with its multi-line boxes for wrong options replaced by one line."""

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            kwargs["standalone_mode"] = False
            for stream in (sys.stdout, sys.stderr):
                # Names that a terminal cannot show must not end a run.
                if isinstance(stream, io.TextIOWrapper):
                    stream.reconfigure(errors="backslashreplace")
            try:
                code = super().__call__(*args, **kwargs)
            except (ConfigError, OSError) as error:
                fail(str(error))
            except TrainingError as error:
                fail(str(error), 1)
            except (typer.Abort, KeyboardInterrupt):
                fail("stopped", 130)
            except Exception as error:
                # Usage errors; typer has its own copy of click, so their class has no fixed home.
                if not hasattr(error, "format_message"):
                    raise
                fail(error.format_message())
            sys.exit(code if isinstance(code, int) else 0)

    app = _App(
        name="fused-mi",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # it takes the brackets of a default for markup
        help="Mutual-information losses: train a noise layer on text with them.",
    )

    @app.callback(invoke_without_command=True)
    def _main(
        context: typer.Context,
        version: Annotated[
            bool, typer.Option("--version", help="Print the version and leave.")
        ] = False,
    ) -> None:
        if version:
            print(_version.__version__)
            raise typer.Exit
        if context.invoked_subcommand is None:
            print(context.get_help())
            raise typer.Exit

    @app.command("info")
    def _info() -> None:
        """Versions, devices, compilers, backends and environment variables, for bug reports."""
        from .._info import info

        print(info())

    _D = TrainConfig()

    _OF_OBJECTIVE = "by the objective"

    def _option(field: str, text: str, default: str | None = None) -> Any:
        flag = "--" + field.replace("_", "-")
        return typer.Option(flag, help=f"{text} [default: {default or getattr(_D, field)}]")

    _Steps = Annotated[int | None, _option("steps", "Optimiser steps in total.")]
    _BatchSize = Annotated[int | None, _option("batch_size", "Passages per step.")]
    _Tokens = Annotated[
        int | None, _option("tokens", "Tokens of a step that the objective takes, at most.")
    ]
    _SeqLen = Annotated[int | None, _option("seq_len", "Tokens per passage.")]
    _Device = Annotated[str | None, _option("device", "Torch device: auto, cpu, cuda, ...")]
    _Dtype = Annotated[
        str | None, _option("dtype", "Encoder precision: float32, bfloat16 or float64.")
    ]
    _Precision = Annotated[
        str | None, _option("precision", "Mixed precision of a step: no or bf16.")
    ]
    _Model = Annotated[str | None, _option("model", "minilm, smollm2, a local path or a hub name.")]
    _Text = Annotated[
        str | None,
        _option("text", "File, folder of .txt/.md/.rst files, or CPython's own reference."),
    ]
    _EvalPassages = Annotated[
        int | None, _option("eval_passages", "Passages of each held-out split to use, at most.")
    ]

    @app.command()
    def train(
        objective: Annotated[
            str | None,
            _option("objective", "What noise has to hide: tokens, passages, std or none."),
        ] = None,
        utility: Annotated[
            str | None,
            _option("utility", "What is to be kept: retrieval, cosine or kl.", "by the model"),
        ] = None,
        alpha: Annotated[
            float | None, _option("alpha", "Weight of the objective, in nats.", _OF_OBJECTIVE)
        ] = None,
        start: Annotated[
            float | None,
            _option("start", "Where sigma starts between its bounds, 0 to 1.", _OF_OBJECTIVE),
        ] = None,
        tokens: _Tokens = None,
        batch_size: _BatchSize = None,
        steps: _Steps = None,
        lr: Annotated[float | None, _option("lr", "Learning rate of Adam.")] = None,
        seq_len: _SeqLen = None,
        estimator: Annotated[
            str | None, _option("estimator", "Of passages: jensen or logsumexp.")
        ] = None,
        pairing: Annotated[
            str | None,
            _option("pairing", "Scored pairs: sub_batch, symmetric or leave_one_out."),
        ] = None,
        device: _Device = None,
        dtype: _Dtype = None,
        precision: _Precision = None,
        tracker: Annotated[
            str | None,
            _option("tracker", "none, or what Accelerate knows: tensorboard, wandb, ..."),
        ] = None,
        seed: Annotated[int | None, _option("seed", "Fixes split, batches and noise.")] = None,
        min_std: Annotated[float | None, _option("min_std", "Lower bound of sigma.")] = None,
        max_std: Annotated[float | None, _option("max_std", "Upper bound of sigma.")] = None,
        model: _Model = None,
        text: _Text = None,
        eval_passages: _EvalPassages = None,
        save_every: Annotated[
            int | None, _option("save_every", "Steps between checkpoints.")
        ] = None,
        output: Annotated[
            str | None, typer.Option(help="Output folder [default: the next free runs/NNN]")
        ] = None,
        resume: Annotated[
            bool, typer.Option("--resume", help="Go on with the run in --output (or the last one).")
        ] = False,
        sweep: Annotated[
            str | None,
            typer.Option(help="alpha=a,b,c: one run per alpha, and the privacy-utility curve."),
        ] = None,
    ) -> int:
        """Train a noise layer against a frozen model and report what it hides."""
        options = {k: v for k, v in locals().items() if k not in {"output", "resume", "sweep"}}
        given = {name: value for name, value in options.items() if value is not None}
        if sweep is not None and "alpha" in given:
            raise ConfigError("--alpha and --sweep alpha=... exclude each other")
        alphas = _alphas(sweep) if sweep is not None else None
        TrainConfig(**given)  # wrong values fail here, before anything heavy is imported
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from . import ranks, session

        if output == "":
            raise ConfigError("--output must not be empty")
        if ranks.count() > 1 and (output is None or alphas is not None):
            raise ConfigError("several ranks need --output, and take no --sweep")
        folder = Path(output).expanduser() if output is not None else session.pick_folder(resume)
        try:
            with session.or_nothing(folder):
                if alphas is None:
                    return session.run_one(given, folder, resume)
                return session.run_sweep(given, alphas, folder, resume)
        except KeyboardInterrupt:  # here: typer would say nothing of it
            fail("stopped; what was saved before is kept, nothing was added", 130)

    @app.command()
    def ablation(
        objectives: Annotated[
            str, typer.Option(help="Which to train.")
        ] = "tokens,passages,std,none",
        seeds: Annotated[str, typer.Option(help="One of everything for each.")] = "0,1,2",
        found: Annotated[
            float, typer.Option(help="How often own passages are to be found.")
        ] = 0.93,
        searches: Annotated[
            int, typer.Option(help="Layers that a search for an alpha may train, beside the curve.")
        ] = 4,
        steps: _Steps = None,
        batch_size: _BatchSize = None,
        tokens: _Tokens = None,
        seq_len: _SeqLen = None,
        device: _Device = None,
        dtype: _Dtype = None,
        precision: _Precision = None,
        model: _Model = None,
        text: _Text = None,
        eval_passages: _EvalPassages = None,
        output: Annotated[str, typer.Option(help="Its folder, to go on with.")] = "runs/ablation",
    ) -> int:
        """Compare the objectives where own passages are found equally often; it can be stopped."""
        own = {"objectives", "seeds", "found", "searches", "output"}
        given = {k: v for k, v in locals().items() if k not in {*own, "own"} and v is not None}
        base = TrainConfig(**given, tracker="none")
        which = objectives_of(objectives.split(","))
        numbers = _seeds(seeds)
        if not 0 < found < 1 or searches < 0:
            raise ConfigError("--found lies between 0 and 1, --searches is at least 0")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from . import ablation_report, ranks, trainer
        from .ablation import Ablation

        if ranks.count() > 1:
            raise ConfigError("an ablation takes one rank; parts of it can run beside each other")
        try:
            compared = Ablation(base, Path(output).expanduser(), found, searches)
            compared.run(which, numbers)
            print(ablation_report.write(compared))
        except (KeyboardInterrupt, trainer.Interrupted):
            fail("stopped; layers that were measured are kept: the same command goes on", 130)
        print(f"Written to {output}/: ablation.md, ablation.json, ablation.png")
        return 0


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(seed) for seed in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds must look like 0,1,2 (each once), got {text!r}")
    return seeds


def _alphas(sweep: str) -> list[float]:
    name, _, values = sweep.partition("=")
    try:
        alphas = [float(value) for value in values.split(",")]
    except ValueError:
        alphas = []
    folders = {f"{alpha:g}" for alpha in alphas}  # which have their names
    if name != "alpha" or not alphas or len(folders) < len(alphas):
        raise ConfigError(f"--sweep must look like alpha=0.5,1,2 (each once), got {sweep!r}")
    return alphas


if __name__ == "__main__":
    app()
