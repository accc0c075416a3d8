"""`genseg generate`: writes synthetic pairs as a raw dataset."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from nnunetv2_genseg.cli.checks import RAW, quietly_preprocessed, require_set
from nnunetv2_genseg.cli.options import add_dataset, add_overrides, add_trainer, prepared
from nnunetv2_genseg.config import GenSegError


def parser() -> argparse.ArgumentParser:
    """All options."""
    options = argparse.ArgumentParser(
        prog="genseg generate",
        description="Writes synthetic pairs of whole images, made from a fold's training cases, as a raw dataset of nnU-Net.",
        allow_abbrev=False,
    )
    add_dataset(options)
    options.add_argument("fold", metavar="FOLD", help="fold whose training cases and generator are used, or `all`")
    options.add_argument("-n", metavar="N", type=int, required=True, help="pairs that the folder holds in the end")
    where = options.add_mutually_exclusive_group(required=True)
    where.add_argument("-o", metavar="FOLDER", type=Path, help="where they are written; an interrupted run goes on there")
    where.add_argument(
        "--into-raw",
        metavar="NAME",
        help="writes a dataset of this name, such as Dataset905_Mixed, into nnUNet_raw: the fold's training cases and the pairs",
    )
    options.add_argument(
        "--masks",
        metavar="FOLDER",
        type=Path,
        help="masks in the format of labelsTr, for which a trained generator draws images (default: deformed real masks)",
    )
    options.add_argument(
        "--least-dice",
        metavar="DICE",
        type=float,
        help="draws a pair again if the fold's trained network finds less of its mask, or its intensities are unusual",
    )
    options.add_argument("--redraws", metavar="N", type=int, default=3, help="how often at most (default: %(default)s)")
    options.add_argument("--seed", type=int, default=0, help="of all draws (default: %(default)s)")
    options.add_argument("--shards", metavar="N", type=int, default=1, help="processes that draw at once (default: %(default)s)")
    options.add_argument(
        "--engine", default="local", help="where they run: local, ray or slurm, as in `genseg sweep` (default: %(default)s)"
    )
    options.add_argument(
        "--slurm", metavar="OPTION=VALUE", action="append", default=[], help="option of submitit's, such as slurm_partition=gpu"
    )
    options.add_argument("--shard", help=argparse.SUPPRESS)
    add_trainer(options, "cuda", "draw")
    add_overrides(options)
    return options


def run(arguments: Sequence[str]) -> None:
    """Writes the pairs and prints where they are.

    Raises:
        GenSegError: the dataset was not preprocessed, or something else that a user can correct.
    """
    chosen = parser().parse_intermixed_args(arguments)
    of_trainer = prepared(chosen)
    require_set(RAW)
    from nnunetv2_genseg.sweep.shards import draw
    from nnunetv2_genseg.trainers import generating
    from nnunetv2_genseg.trainers.guarding import ending_on_sigterm
    from nnunetv2_genseg.trainers.real_cases import raw_dataset

    output = raw_dataset(chosen.into_raw) if chosen.into_raw is not None else chosen.o
    settings = generating.Generation(
        **of_trainer,
        output=output,
        pairs=chosen.n,
        seed=chosen.seed,
        with_real=chosen.into_raw is not None,
        masks=chosen.masks,
        least_dice=chosen.least_dice,
        redraws=chosen.redraws,
        shard=None if chosen.shard is None else _shard(chosen.shard),
    )
    say = partial(print, "genseg:", file=sys.stdout, flush=True)
    if chosen.shards < 1:
        raise GenSegError(f"--shards must be 1 or more, found {chosen.shards}")
    with ending_on_sigterm(), quietly_preprocessed(chosen.dataset):
        if chosen.shards > 1 and chosen.shard is None:
            draw(arguments, output, chosen.shards, chosen.engine, chosen.device == "cuda", _options(chosen.slurm))
        drawn = generating.generate(settings, say)
    kept = f"; {chosen.n - drawn} were there already" if drawn < chosen.n and chosen.shards == 1 else ""
    print(f"{chosen.n} pairs are in {output}{kept}")


def _shard(text: str) -> tuple[int, int]:
    """`i/n`, as this command itself writes it."""
    i, n = map(int, text.split("/"))
    return i, n


def _options(given: Sequence[str]) -> dict[str, str | int]:
    """What `--slurm` says."""
    pairs = [text.partition("=") for text in given]
    if faulty := [text for text, (name, equals, _) in zip(given, pairs) if not (name and equals)]:
        raise GenSegError(f"--slurm needs OPTION=VALUE, as in slurm_partition=gpu, found {faulty[0]!r}")
    return {name: int(value) if value.isdigit() else value for name, _, value in pairs}
