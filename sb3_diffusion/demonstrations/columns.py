"""Columns of a data set: arrays in memory, memory maps or HDF5 data sets, alone or in dictionaries, read row by row."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, maybe_transpose

if TYPE_CHECKING:
    import h5py

# Rows that are read at once by whatever goes through a whole data set
ROWS_AT_ONCE = 4096

WITHOUT_DEMONSTRATIONS = (
    "to load a model without: load(…, custom_objects=dict(replay_buffer_class=None, replay_buffer_kwargs={}))"
)

# Anything with shape, dtype and rows: np.ndarray, np.memmap, h5py.Dataset
Column = Any
Columns = Column | dict[str, Column]


class MappedFile(NamedTuple):
    """What a pickle holds in the place of a memory map: where it lies, not what it holds."""

    path: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    order: Literal["C", "F"] = "C"

    @classmethod
    def of(cls, column: np.memmap) -> "MappedFile":
        order: Literal["C", "F"] = "C" if column.flags.c_contiguous else "F"
        return cls(str(column.filename), column.dtype, column.shape, column.offset, order)

    def open(self) -> np.memmap:
        """:raises FileNotFoundError: if the file has gone"""
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape, self.order)


class Hdf5Dataset(NamedTuple):
    """What a pickle holds in the place of an HDF5 data set."""

    path: str
    name: str

    @classmethod
    def of(cls, column: "h5py.Dataset") -> "Hdf5Dataset":
        return cls(os.path.abspath(column.file.filename), column.name)

    def open(self) -> "h5py.Dataset":
        """:raises FileNotFoundError: if the file has gone"""
        import h5py

        return h5py.File(self.path, "r")[self.name]


def without_data(value: Any) -> Any:
    """A map of a file, or an HDF5 data set, becomes the place where it lies; anything else stays as it is."""
    # Not a part of a map, which is a map of the same file in NumPy's eyes
    if isinstance(value, np.memmap) and not isinstance(value.base, np.ndarray) and value.filename is not None:
        return MappedFile.of(value)
    h5py = sys.modules.get("h5py")
    return Hdf5Dataset.of(value) if h5py is not None and isinstance(value, h5py.Dataset) else value


def with_data(value: Any) -> Any:
    """
    The reverse of :func:`without_data`.

    :raises FileNotFoundError: if the file has gone
    """
    if not isinstance(value, (MappedFile, Hdf5Dataset)):
        return value
    try:
        return value.open()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the demonstrations in {value.path} have gone; {WITHOUT_DEMONSTRATIONS}") from error


def map_columns(function: Callable[..., Any], *columns: Any) -> Any:
    """Apply a function to columns, entry by entry if they are dictionaries."""
    first = columns[0]
    if isinstance(first, dict):
        return {key: function(*(column[key] for column in columns)) for key in first}
    return function(*columns)


def named_columns(name: str, columns: Columns) -> Iterator[tuple[str, Column]]:
    """The columns with the names that messages give them: ``observations``, or ``observations['key']``."""
    if isinstance(columns, dict):
        yield from ((f"{name}[{key!r}]", column) for key, column in columns.items())
    else:
        yield name, columns


def as_column(values: Any) -> Column:
    """What is no array or map yet becomes an array; maps and HDF5 data sets stay where they are."""
    return values if hasattr(values, "shape") and hasattr(values, "dtype") and _is_plain(values) else np.asarray(values)


def _is_plain(values: Any) -> bool:
    return isinstance(values, np.ndarray) or isinstance(values.dtype, np.dtype)


def take(column: Column, rows: np.ndarray) -> np.ndarray:
    """
    Copies of some rows, in the given order.

    :param column: (N, …)
    :param rows: (B,) integers
    :return: (B, …)
    """
    if isinstance(column, np.ndarray):
        return np.asarray(column[rows])
    # HDF5 reads rows in ascending order, each once.
    ascending, inverse = np.unique(rows, return_inverse=True)
    return np.asarray(column[ascending])[inverse]


def to_space(observations: Any, space: spaces.Space | None) -> Any:
    """
    Images with channels first or last, as the space wants them; everything else as it is.

    :param observations: (B, *observation shape), or a dictionary of such
    :param space: of one observation, or None: as they are
    """
    if isinstance(space, spaces.Dict):
        return {key: to_space(value, space.spaces.get(key)) for key, value in observations.items()}
    return maybe_transpose(observations, space) if space is not None and is_image_space(space) else observations


def in_pieces(n_rows: int) -> Iterator[slice]:
    """Slices that go through all rows, small enough for data sets that are larger than memory."""
    for start in range(0, n_rows, ROWS_AT_ONCE):
        yield slice(start, min(start + ROWS_AT_ONCE, n_rows))


class ColumnWriter:
    """
    Columns that grow by blocks of rows, in memory or, with a folder, in files of it that are mapped at the end. As a context
    manager: after a failure nothing is left in the folder.

    :param folder: a new or empty folder, or None for memory
    :raises ValueError: for a folder that holds something
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder).resolve()
        if self.folder is not None:
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise ValueError(f"folder={str(folder)!r} must be a new or an empty folder: nothing is overwritten")
            self._made = not self.folder.exists()
            self.folder.mkdir(parents=True, exist_ok=True)
        self._blocks: dict[str, list[np.ndarray]] = {}
        self._files: dict[str, BinaryIO] = {}
        self._layouts: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
        self._lengths: dict[str, int] = {}

    def append(self, name: str, block: Columns) -> None:
        """
        :param name: of the column
        :param block: (n, …), or a dictionary of such
        :raises ValueError: where shape or dtype change from block to block
        """
        if isinstance(block, dict):
            for key, entry in block.items():
                self.append(f"{name}/{key}", entry)
            return
        block = np.asarray(block)
        layout = self._layouts.setdefault(name, (block.dtype, block.shape[1:]))
        if layout != (block.dtype, block.shape[1:]):
            raise ValueError(f"{name}: rows of {block.dtype} {block.shape[1:]} follow rows of {layout[0]} {layout[1]}")
        self._lengths[name] = self._lengths.get(name, 0) + len(block)
        if self.folder is None:
            self._blocks.setdefault(name, []).append(block)
            return
        if name not in self._files:
            self._files[name] = open(self._path(name), "wb")  # closed by columns() or __exit__
        self._files[name].write(np.ascontiguousarray(block).tobytes())

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        # A key may hold any character; its place among the columns is a name that every file system takes.
        return self.folder / f"{name.partition('/')[0]}_{list(self._layouts).index(name)}.bin"

    def columns(self, name: str) -> Columns:
        """:return: all rows appended under the name, (N, …), or a dictionary of such"""
        if name not in self._layouts:
            prefix = f"{name}/"
            return {key[len(prefix) :]: self.columns(key) for key in self._layouts if key.startswith(prefix)}
        if self.folder is None:
            return np.concatenate(self._blocks.pop(name))
        self._files.pop(name).close()
        dtype, shape = self._layouts[name]
        return MappedFile(str(self._path(name)), dtype, (self._lengths[name], *shape), 0).open()

    def __enter__(self) -> "ColumnWriter":
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: Any) -> None:
        for file in self._files.values():
            file.close()
        if error_type is not None and self.folder is not None:
            for name in self._layouts:
                self._path(name).unlink(missing_ok=True)
            if self._made:
                shutil.rmtree(self.folder, ignore_errors=True)
