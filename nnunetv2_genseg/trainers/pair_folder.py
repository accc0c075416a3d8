"""A folder that `genseg generate` wrote, as it is read again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.config.reading import in_form
from nnunetv2_genseg.trainers.folds import cases_of_fold
from nnunetv2_genseg.trainers.preflight import first_of
from nnunetv2_genseg.trainers.provenance import FILE_NAME, read_record


@dataclass(frozen=True)
class PairFolder:
    """The complete pairs of a folder, and what they were made from."""

    folder: Path
    sources: dict[str, str]
    """For every pair the case that it was made from, in the order of their names."""
    new_masks: dict[str, bool]
    """For every pair whether its mask is no real one."""
    made_by: dict[str, str]
    """For every pair its pair source, such as `redraw`."""
    cases: list[str]
    """The training cases of the fold that the pairs were made for."""
    origin: dict[str, Any]
    """What all pairs have in common."""

    @staticmethod
    def read(folder: Path, dataset: str | None = None, fold: str | None = None, most: int | None = None) -> PairFolder:
        """Reads the record.

        Args:
            folder: of the pairs.
            dataset: that they must have been made from; None: any.
            fold: that they must have been made for; None: any.
            most: as many pairs are taken, the first ones; None: all.

        Raises:
            GenSegError: the folder holds no pairs, pairs of another dataset or fold, or not all files of its pairs.
        """
        path = folder / FILE_NAME
        if not path.is_file():
            raise GenSegError(f"{path} is missing; name a folder that `genseg generate` wrote")
        origin, pairs = read_record(path, "generate the pairs again")
        for name, own in (("dataset", dataset), ("fold", fold)):
            if own is not None and origin.get(name) != own:
                raise GenSegError(
                    f"the pairs in {folder} were made from {name} {origin.get(name)}, not from {own}; name the {name} that they "
                    "were made from"
                )
        chosen = {name: pairs[name] for name in sorted(pairs)[:most]}
        if not chosen:
            raise GenSegError(f"{folder} holds no complete pair; start `genseg generate` again")
        cases = in_form(origin.get("cases"), list[str], "a list of cases", f"`origin.cases` in {path}")
        sources, new_masks, made_by, missing = {}, {}, {}, []
        for name, pair in chosen.items():
            where = f"`pairs.{name}` in {path}"
            made_from = in_form(pair.get("cases"), list[str], "a list of cases", f"`cases` of {where}")
            if not made_from or made_from[0] not in cases:
                raise GenSegError(
                    f"`cases` of {where} must name a training case of the fold, found {made_from}; restore the file"
                )
            sources[name] = made_from[0]
            new_masks[name] = in_form(pair.get("new_mask"), bool, "true or false", f"`new_mask` of {where}")
            made_by[name] = in_form(pair.get("source"), str, "the name of a pair source", f"`source` of {where}")
            files = in_form(pair.get("files"), dict[str, int], "a mapping of files to bytes", f"`files` of {where}")
            missing += [file for file in files if not (folder / file).is_file()]
        if missing:
            raise GenSegError(f"{folder} lacks files of its pairs ({first_of(missing)}); start `genseg generate` again")
        return PairFolder(folder, sources, new_masks, made_by, cases, origin)


def fold_cases(preprocessed: Path, data: str, fold: str, pairs: PairFolder) -> tuple[list[str], list[str]]:
    """The training and the validation cases of a fold; for the fold `all` no validation cases.

    Args:
        preprocessed: folder of the preprocessed dataset.
        data: name of the folder in it that holds the configuration's cases.
        fold: its number, or `all`.
        pairs: that were made for it.

    Raises:
        GenSegError: the fold has other training cases than when the pairs were made, or its cases are not known.
        FileNotFoundError: the dataset was not preprocessed.
    """
    if fold == "all":
        return sorted(pairs.cases), []
    found = cases_of_fold(preprocessed, data, int(fold))
    _require_same(found.train, pairs, preprocessed / "splits_final.json", fold)
    return sorted(pairs.cases), sorted({*found.val} - set(pairs.cases))


def _require_same(training: Collection[str], pairs: PairFolder, path: Path, fold: str) -> None:
    differing = sorted(set(training) ^ set(pairs.cases))
    if differing:
        raise GenSegError(
            f"the pairs in {pairs.folder} were made from other training cases than those of fold {fold} in {path} "
            f"({first_of(differing)}); restore that file, or generate the pairs again"
        )
