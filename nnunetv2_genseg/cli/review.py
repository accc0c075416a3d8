"""`genseg review`: a page on which people judge written pairs."""

from __future__ import annotations

import argparse
import secrets
import socket
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from nnunetv2_genseg.config import GenSegError


def parser() -> argparse.ArgumentParser:
    """All options."""
    options = argparse.ArgumentParser(
        prog="genseg review",
        description="Shows pairs that `genseg generate` wrote on a page of this machine, to be accepted, rejected or rated.",
        allow_abbrev=False,
    )
    options.add_argument(
        "folder", metavar="FOLDER", type=Path, help="folder that `genseg generate` wrote; review.csv is written there"
    )
    options.add_argument(
        "--host",
        default="127.0.0.1",
        help="name or IPv4 address of this machine that the page has (default: %(default)s)",
    )
    options.add_argument("--port", type=int, default=0, help="0 for any that is free (default: %(default)s)")
    options.add_argument("--export", action="store_true", help="only write review.csv")
    return options


def run(arguments: Sequence[str]) -> None:
    """Prints the address of the page and answers until it is interrupted.

    Raises:
        GenSegError: there are no pairs, the port is taken, or something else that a user can correct.
    """
    chosen = parser().parse_args(arguments)
    if chosen.export:
        print(f"All decisions are in {_export(chosen.folder)}")
        return
    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise GenSegError(f'`genseg review` needs {" and ".join(missing)}; run: pip install "nnunetv2-genseg[review]"')
    from nnunetv2_genseg.review import app, serving
    from nnunetv2_genseg.review.decisions import Decisions
    from nnunetv2_genseg.trainers.reviewed_pairs import ReviewedPairs

    pairs = ReviewedPairs(chosen.folder)
    listener = serving.listening(chosen.host, chosen.port)
    decisions = Decisions(chosen.folder, pairs.record.origin)
    decisions.export()  # what a killed server could not write
    pairs.read_first()
    token, hosts = secrets.token_urlsafe(), serving.names_of(chosen.host)
    if chosen.host not in serving.LOOPBACK:
        _warn(
            f"warning: with --host {chosen.host} everyone in the network who has the address can see the images and decide, and "
            "the connection is not encrypted"
        )
    if pairs.real is None:
        _warn("the real cases are not shown, since nnUNet_raw does not hold their dataset")
    shown = socket.gethostname() if chosen.host == "0.0.0.0" else chosen.host
    address = f"http://{shown}:{listener.getsockname()[1]}/{token}/"
    said = f"{len(pairs.sources)} pairs can be judged at\n  {address}\nCtrl+C ends the server; every decision is kept."
    serving.serve(app.application(pairs, decisions, token, hosts), listener, partial(print, said, flush=True))
    print(f"All decisions are in {decisions.export()}")


def _export(folder: Path) -> Path:
    """Writes review.csv without a server; returns its path."""
    from nnunetv2_genseg.review.decisions import DATABASE_FILE, Decisions
    from nnunetv2_genseg.trainers.pair_folder import PairFolder

    origin = PairFolder.read(folder).origin
    if not (folder / DATABASE_FILE).is_file():
        raise GenSegError(f"{folder} holds no decisions; judge pairs first: genseg review {folder}")
    return Decisions(folder, origin).export()


def _warn(text: str) -> None:
    print(f"genseg: {text}", file=sys.stderr)
