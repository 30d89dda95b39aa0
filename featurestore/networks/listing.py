"""What there is to choose from: models of all sources, modules of one model and their cost."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from featurestore.errors import InvalidInputError, ModuleNotFoundInModelError, NotFoundError
from featurestore.networks import registry
from featurestore.networks.network import is_network
from featurestore.networks.taps import Tap
from featurestore.options import format_nbytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from featurestore.networks.network import Network
    from featurestore.networks.spec import ModelRecord
    from featurestore.networks.taps import ModuleInfo, OutputInfo
    from featurestore.typing import PathLike

FLOAT32_NBYTES = 4
N_SHOWN = 200
HEADS = ("type", "dims", "shape", "calls", "values", "bytes/image")


class ModelList(tuple[str, ...]):
    """Names of models, as `get` takes them."""

    unavailable: Mapping[str, str]
    """Sources that could not be asked, and why."""

    def __repr__(self) -> str:
        shown = [f"<featurestore.ModelList: {len(self)} models>", *self[:N_SHOWN]]
        if len(self) > N_SHOWN:
            shown.append(f"… {len(self) - N_SHOWN} more; narrow them with pattern=")
        shown += [f"({name} is not available: {why})" for name, why in self.unavailable.items()]
        return "\n".join(shown)


@dataclass(frozen=True, slots=True)
class ModuleRow:
    """A module and what keeping its output costs."""

    name: str
    type: str
    """Its class."""
    dims: tuple[str, ...]
    """Of one image's activations; empty if there are none to keep."""
    shape: tuple[int, ...]
    n_calls: int
    """Calls per forward pass; a bare name means the last."""
    n_values: int
    """Activations per image."""
    nbytes: int
    """Size of one image's activations in float32 [bytes]."""
    flops: int
    """Floating-point operations inside it per image, a multiplication and an addition counting
    as two; 0 if there are none, or they are not known."""
    problem: str
    """Why it cannot be kept; empty if it can."""


class ModuleTable:
    """The modules of a model, in the order in which they run.

    Parameters
    ----------
    record : ModelRecord
        What is known of the model.
    """

    def __init__(self, record: ModelRecord) -> None:
        self.model = record.label
        self.record = record
        self._rows = tuple(_row(module) for module in record.modules)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[ModuleRow]:
        return iter(self._rows)

    @overload
    def __getitem__(self, which: int | str) -> ModuleRow: ...
    @overload
    def __getitem__(self, which: slice) -> tuple[ModuleRow, ...]: ...
    def __getitem__(self, which: int | slice | str) -> ModuleRow | tuple[ModuleRow, ...]:
        """Return a row by its number or by its module's name."""
        if isinstance(which, str):
            which = self.record.modules.index(self.record.module(which))
        return self._rows[which]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the modules."""
        return tuple(row.name for row in self._rows)

    def __repr__(self) -> str:
        cells = [("name", *HEADS), *(_cells(row, row.name or '""') for row in self._rows)]
        first = f"<featurestore.ModuleTable: {self.model}, {len(self)} modules>"
        return "\n".join([first, *_aligned(cells)])


def models(*, source: str | None = None, pattern: str | None = None) -> ModelList:
    """List models by the names that `get` takes.

    Parameters
    ----------
    source : str, optional
        Only this source's; by default those of every source that is installed.
    pattern : str, optional
        Only names like this: with ``*`` and ``?``, or any part of the name.

    Returns
    -------
    ModelList
        A tuple of names that prints well.

    Raises
    ------
    ModelNotFoundError
        If there is no such source.
    MissingDependencyError
        If the library behind the one source asked for is not installed.
    """
    unavailable: dict[str, str] = {}
    names: list[str] = []
    for name in registry.sources() if source is None else [source]:
        try:
            found = registry.load_source(name).model_names()
        except Exception as err:  # whatever a plug-in raises, the others are listed
            if source is not None:
                raise
            unavailable[name] = f"{type(err).__name__}: {err}"
            continue
        prefix = "" if name == registry.DEFAULT_SOURCE else f"{name}/"
        names += [prefix + model for model in found]
    listed = ModelList(name for name in names if _matches(name, pattern))
    listed.unavailable = unavailable
    return listed


def modules(
    model: str | Network,
    *,
    weights: PathLike | None = "random",
    seed: int = 0,
    preprocess: Any = None,
) -> ModuleTable:
    """List the modules of a model and what keeping each costs.

    Runs three small batches, so that shapes are measured and not guessed. A row's `flops`, which
    the table leaves out for width, are what the module costs to run.

    Parameters
    ----------
    model : str or Network
        A name, or a network from `fs.wrap`.
    weights : str, path or None
        As `get` takes it. Random weights suffice, and need no download.
    seed : int
        Of random weights.
    preprocess : Preprocess or callable, optional
        As `get` takes it; it decides the size of the input and so of the activations.

    Returns
    -------
    ModuleTable
        In order of execution; can be indexed by name.

    Raises
    ------
    ModelNotFoundError
        If there is no such model.
    InvalidInputError
        If the model publishes no size of its input and none is given.
    """
    if isinstance(model, str):
        request = registry.request(model, weights=weights, seed=seed, preprocess=preprocess)
        network: Network = registry.load(request)
    elif is_network(model):
        network = model
    else:
        raise InvalidInputError(
            f"{model!r} is neither a name nor a network; wrap your own with fs.wrap."
        )
    return ModuleTable(network.record)


def choose_module(
    model: str | Network,
    *,
    weights: PathLike | None = "random",
    preprocess: Any = None,
    ask: Callable[[str], str] | None = None,
    show: Callable[[str], object] | None = None,
) -> str:
    """Show the modules of a model as a numbered tree, and ask for one.

    Parameters
    ----------
    model : str or Network
        A name, or a network from `fs.wrap`.
    weights : str, path or None
        As `get` takes it.
    preprocess : Preprocess or callable, optional
        As `get` takes it.
    ask : callable, optional
        Asks a question and returns the answer; by default `input`.
    show : callable, optional
        Shows a text; by default `print`.

    Returns
    -------
    str
        The module's name, with selectors if the answer had any.
    """
    table = modules(model, weights=weights, preprocess=preprocess)
    ask, show = ask or input, show or print
    show(_tree(table))
    while True:
        answer = ask(f"Module of {table.model} (number or name): ").strip()
        try:
            return _chosen(table, answer)
        except (NotFoundError, InvalidInputError) as err:
            show(str(err))


def _matches(name: str, pattern: str | None) -> bool:
    if pattern is None:
        return True
    wild = any(letter in pattern for letter in "*?[")
    return fnmatch.fnmatchcase(name, pattern) if wild else pattern in name


def _row(module: ModuleInfo) -> ModuleRow:
    output, problem = _kept(module)
    dims = () if output is None else output.dims
    shape = () if output is None else output.shape
    n_values = 0 if output is None else output.n_values
    nbytes = n_values * FLOAT32_NBYTES
    return ModuleRow(
        name=module.name,
        type=module.type,
        dims=dims,
        shape=shape,
        n_calls=module.n_calls,
        n_values=n_values,
        nbytes=nbytes,
        flops=module.flops,
        problem=problem,
    )


def _kept(module: ModuleInfo) -> tuple[OutputInfo | None, str]:
    try:
        return module.output(Tap(module.name)), ""
    except ModuleNotFoundInModelError:
        return None, "never called"
    except InvalidInputError:
        return None, module.outputs[-1].problem or module.outputs[0].problem


def _cells(row: ModuleRow, name: str) -> tuple[str, ...]:
    if row.problem:
        return name, row.type, f"({row.problem})", "", str(row.n_calls), "", ""
    shape = " x ".join(map(str, row.shape))
    values, nbytes = f"{row.n_values:,}", format_nbytes(row.nbytes)
    return name, row.type, ", ".join(row.dims), shape, str(row.n_calls), values, nbytes


def _aligned(cells: list[tuple[str, ...]]) -> list[str]:
    # What cannot be kept says why across the columns that it leaves empty.
    whole = [row for row in cells if not row[2].startswith("(")]
    widths = [max(len(row[column]) for row in whole) for column in range(len(cells[0]))]
    widths[:2] = [max(len(row[column]) for row in cells) for column in range(2)]
    lines = []
    for row in cells:
        left = [row[column].ljust(widths[column]) for column in range(4)]
        right = [row[column].rjust(widths[column]) for column in range(4, len(row))]
        lines.append("  ".join(left[:3] if row not in whole else left + right).rstrip())
    return lines


def _tree(table: ModuleTable) -> str:
    cells: list[tuple[str, ...]] = [("      module", *HEADS)]
    for number, row in enumerate(table):
        *parents, last = row.name.split(".")
        depth = len(parents) + 1 if row.name else 0
        cells.append(_cells(row, f"{number:4d}  {'  ' * depth}{last or table.model}"))
    return "\n".join(_aligned(cells))


def _chosen(table: ModuleTable, answer: str) -> str:
    if answer.isdecimal():
        if int(answer) >= len(table):
            raise InvalidInputError(f"{answer} is not a number from 0 to {len(table) - 1}.")
        answer = table.names[int(answer)]
    table.record.resolve(Tap.parse(answer))
    return answer
