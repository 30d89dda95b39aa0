"""Modules, their outputs, and how a user points at one of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.errors import InvalidInputError, ModuleNotFoundInModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from featurestore.typing import Json

_TAP = re.compile(r"(?P<module>[^\[\]@]*)(?P<path>(\[[^\[\]]+\])*)(@(?P<call>\d+))?")


@dataclass(frozen=True, slots=True)
class Tap:
    """Which output of which call of which module is wanted, as the user wrote it."""

    module: str
    call: int | None = None
    """Number of the call from 0; ``None`` is the last one."""
    path: tuple[str | int, ...] = ()
    """Steps into tuples and dicts; empty takes the first tensor."""

    @classmethod
    def parse(cls, text: str) -> Tap:
        """Read ``"layer1.0.relu@0"``, ``"attn[0]"`` or ``"encoder[last_hidden_state]"``.

        Parameters
        ----------
        text : str
            A module's name and selectors.

        Returns
        -------
        Tap
            Its parts.

        Raises
        ------
        InvalidInputError
            If it cannot be read.
        """
        match = _TAP.fullmatch(text)
        if match is None:
            raise InvalidInputError(
                f"{text!r} is not a module name with selectors; write for example "
                "'layer1.0.relu', 'layer1.0.relu@0' or 'attn[0]'."
            )
        steps = re.findall(r"\[([^\[\]]+)\]", match["path"])
        path = tuple(int(step) if step.isdecimal() else step for step in steps)
        return cls(match["module"], int(match["call"]) if match["call"] else None, path)

    def __str__(self) -> str:
        steps = "".join(f"[{step}]" for step in self.path)
        return f"{self.module}{steps}" + ("" if self.call is None else f"@{self.call}")


@dataclass(frozen=True, slots=True)
class OutputInfo:
    """One tensor that a module returns, found by probing."""

    call: int
    """Which call of the module in a forward pass, from 0."""
    path: tuple[str | int, ...]
    """Where the tensor is in what the module returns; empty if it returns the tensor itself."""
    dims: tuple[str, ...]
    """Names of the axes of one row, such as ``("channel", "y", "x")``; without ``image``."""
    shape: tuple[int, ...]
    """Sizes of `dims`."""
    batch_axis: int = 0
    """Which axis of the module's own output counts the images."""
    order: tuple[int, ...] = ()
    """Which of the output's other axes each of `dims` is; empty means in their own order."""
    problem: str = ""
    """Why this output cannot be kept as one row per image; empty if it can."""

    @property
    def n_values(self) -> int:
        """Activations per image."""
        n = 1
        for size in self.shape:
            n *= size
        return n

    def to_json(self) -> dict[str, Json]:
        """Return the facts as they stand in a model record.

        Returns
        -------
        dict
            JSON-able.
        """
        return {
            "call": self.call,
            "path": list(self.path),
            "dims": list(self.dims),
            "shape": list(self.shape),
            "batch_axis": self.batch_axis,
            "order": list(self.order),
            "problem": self.problem,
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> OutputInfo:
        """Read what `to_json` wrote.

        Parameters
        ----------
        facts : mapping
            JSON-able.

        Returns
        -------
        OutputInfo
            The same facts.
        """
        return cls(
            call=int(facts["call"]),
            path=tuple(facts["path"]),
            dims=tuple(facts["dims"]),
            shape=tuple(int(n) for n in facts["shape"]),
            batch_axis=int(facts["batch_axis"]),
            order=tuple(int(n) for n in facts["order"]),
            problem=str(facts["problem"]),
        )


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """A module of a network: what it returns and what keeping it costs."""

    name: str
    type: str
    """The module's class, without its package."""
    n_parameters: int
    outputs: tuple[OutputInfo, ...]
    """Every tensor of every call, in order of execution; empty if it is never called."""
    flops: int = 0
    """Floating-point operations of all its calls for one image, a multiplication and an addition
    counting as two; 0 if there are none, or they are not known."""
    flops_until: int = 0
    """The same from the network's input to the end of its last call, which is what it costs to
    compute its output again."""

    @property
    def n_calls(self) -> int:
        """Calls per forward pass."""
        return 1 + max((output.call for output in self.outputs), default=-1)

    def output(self, tap: Tap) -> OutputInfo:
        """Find the tensor that a tap means.

        Parameters
        ----------
        tap : Tap
            A tap of this module.

        Returns
        -------
        OutputInfo
            What is known about that tensor.

        Raises
        ------
        ModuleNotFoundInModelError
            If the module is never called or has no such call or output.
        InvalidInputError
            If that output cannot be kept as one row per image.
        """
        if not self.outputs:
            raise ModuleNotFoundInModelError(
                f"Module {self.name!r} is never called in a forward pass, so it has no "
                "activations.",
                module=self.name,
            )
        call = self.n_calls - 1 if tap.call is None else tap.call
        found = [
            output
            for output in self.outputs
            if output.call == call and output.path[: len(tap.path)] == tap.path
        ]
        if not found:
            offered = ", ".join(
                str(Tap(self.name, None if self.n_calls == 1 else output.call, output.path))
                for output in self.outputs
            )
            raise ModuleNotFoundInModelError(
                f"Module {self.name!r} has no output {str(tap)!r}. It has: {offered}.",
                module=str(tap),
            )
        if found[0].problem:
            raise InvalidInputError(
                f"{str(tap)!r} cannot be kept as one row per image: {found[0].problem}.",
                module=str(tap),
            )
        return found[0]

    def to_json(self) -> dict[str, Json]:
        """Return the facts as they stand in a model record.

        Returns
        -------
        dict
            JSON-able.
        """
        return {
            "name": self.name,
            "type": self.type,
            "n_parameters": self.n_parameters,
            "outputs": [output.to_json() for output in self.outputs],
            "flops": self.flops,
            "flops_until": self.flops_until,
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> ModuleInfo:
        """Read what `to_json` wrote.

        Parameters
        ----------
        facts : mapping
            JSON-able.

        Returns
        -------
        ModuleInfo
            The same facts.
        """
        return cls(
            name=str(facts["name"]),
            type=str(facts["type"]),
            n_parameters=int(facts["n_parameters"]),
            outputs=tuple(OutputInfo.from_json(output) for output in facts["outputs"]),
            flops=int(facts.get("flops", 0)),  # the first records had none
            flops_until=int(facts.get("flops_until", 0)),
        )
