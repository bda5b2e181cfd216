"""Tidy frames that come from a file: what CSV and Parquet leave out is put back.

1. Empty texts come back as missing values, and so do tokens such as "None" and "NA", which only `read` can keep.
2. Numbers of layers, heads and positions come back as fractions where some rows have none, and tokens that look like
   numbers as numbers.
3. Columns are known by their names, which are the same in every study. Every summary and figure of a study puts its
   frame right first, so that whatever has read the file will do.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from interp.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

WORDS = ("token", "role", "query_token", "key_token", "query_role", "key_role", "top_token")
"""Columns of words, which may look like numbers, or be empty."""

MARKS = ("order", "sample", "selection", "rank", "reason")
"""Columns of texts of which some may be empty."""

INDICES = (
    "layer", "target_layer", "sender_layer", "receiver_layer", "prompt", "pos", "query", "key", "k", "draw", "number",
    "head", "kv_head", "encoder_head", "cross_head", "ssm_head", "ssm_group", "channel", "neuron", "expert",
)  # fmt: skip
"""Columns of whole numbers of which some may be missing."""

F = TypeVar("F", bound=Callable[..., Any])


def read(path: str | Path) -> pd.DataFrame:
    """A frame from a `.csv` or `.parquet` file of a study, with the texts and numbers that were written.

    Raises:
        ConfigError: there is no such file, or it holds no table.
    """
    import pandas as pd

    try:
        path = Path(path)
        if path.suffix == ".parquet":
            return restored(pd.read_parquet(path))
        with path.open(encoding="utf-8", newline="") as file:
            names = next(csv.reader(file), [])
        empty = {name: [""] for name in names if name not in (*WORDS, *MARKS)}
        texts = dict.fromkeys((*WORDS, *(name for name in MARKS if name != "rank")), str)
        return restored(pd.read_csv(path, dtype=texts, na_values=empty, keep_default_na=False))
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read as a table: {error}") from error


def restored(frame: pd.DataFrame) -> pd.DataFrame:
    """A study's frame with the kinds of columns that its `run` gives, whatever a file made of them.

    >>> import pandas as pd
    >>> restored(pd.DataFrame({"layer": [0.0, None], "role": [None, "S"], "token": [7, 8]})).values.tolist()
    [[0, '', '7'], [<NA>, 'S', '8']]
    """
    frame = filled(frame)
    changed: dict[str, Any] = {}
    for name in _once(frame, WORDS):
        if frame[name].dtype.kind in "iuf":
            changed[name] = [_word(value) for value in frame[name]]
    for name in _once(frame, INDICES):
        column = frame[name]
        if column.dtype.kind == "f" and (column.dropna() % 1 == 0).all():
            changed[name] = column.astype("Int64")
    return frame.assign(**changed) if changed else frame


def filled(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame whose missing texts are empty ones, as far as its columns are known to hold texts."""
    import pandas as pd

    changed: dict[str, Any] = {}
    for name in _once(frame, (*WORDS, *MARKS)):
        column = frame[name]
        if isinstance(column.dtype, pd.CategoricalDtype) or not column.isna().any():
            continue
        if column.isna().all():
            changed[name] = ""
        elif column.dtype.kind not in "iuf":
            changed[name] = column.fillna("")
    return frame.assign(**changed) if changed else frame


def restoring(function: F) -> F:
    """Make a function that takes a study's frame put it right first, as `restored` does."""

    @functools.wraps(function)
    def wrapped(frame: pd.DataFrame, *args: Any, **kwargs: Any) -> Any:
        return function(restored(frame), *args, **kwargs)

    return cast(F, wrapped)


def summarised(frame: pd.DataFrame, summary: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    """What a study's `run` returned, summed up by `summary`; what is a summary already, as it is."""
    return summary(frame) if "prompt" in frame else restored(frame)


def _once(frame: pd.DataFrame, names: tuple[str, ...]) -> list[str]:
    """Those of some columns that a frame has, and has once."""
    columns = list(frame.columns)
    return [name for name in names if columns.count(name) == 1]


def _word(value: Any) -> str:
    """A number that was a word: whole ones without a point."""
    return "" if value != value else str(int(value) if float(value).is_integer() else value)
