"""The loop: batches through a network, activations to the writer."""

from __future__ import annotations

import contextlib
import re
import signal
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from featurestore.errors import (
    DiskSpaceError,
    ExtractionInterrupted,
    FeatureStoreError,
    FeatureStoreWarning,
    InvalidInputError,
    ReadOnlyError,
    StoreUnavailableError,
)
from featurestore.extraction.batches import Observations, iterate_batches
from featurestore.extraction.derive import derive
from featurestore.extraction.events import (
    BatchDone,
    BatchSizeHalved,
    RunDone,
    RunStarted,
    StopHeard,
)
from featurestore.extraction.interrupts import Interrupts
from featurestore.extraction.report import Report
from featurestore.extraction.writer import SlotWriter
from featurestore.images.decode import describe_notes
from featurestore.networks.network import DeviceMemoryError
from featurestore.options import format_nbytes, get_options
from featurestore.planning.budget import divide_memory, require_disk_space
from featurestore.policy import DecodePolicy
from featurestore.readouts import apply_readout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featurestore.extraction.batches import Batch
    from featurestore.extraction.events import Event, Listener
    from featurestore.keys import Wanted
    from featurestore.networks.network import Network, Session
    from featurestore.networks.taps import Tap
    from featurestore.planning.plan import Group, Plan
    from featurestore.storage.catalog import Catalog
    from featurestore.typing import Json, Precision

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run, as far as it is not part of a key."""

    device: str = "auto"
    batch_size: int | None = None
    errors: Literal["raise", "skip"] = "raise"
    """Whether unreadable images, which `Report.failures` names, are an error in the end."""
    listeners: tuple[Listener, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if self.errors not in ("raise", "skip"):
            raise InvalidInputError(f"errors={self.errors!r} is not known. Use 'raise' or 'skip'.")
        if _DEVICE.fullmatch(str(self.device)) is None:
            raise InvalidInputError(
                f"device={self.device!r} is not known. Use 'auto', 'cpu', 'cuda', 'cuda:1' or "
                "'mps'."
            )
        size: object = self.batch_size
        if size is not None and not (type(size) is int and size >= 1):
            raise InvalidInputError(f"batch_size={size!r} is not a number of images from 1.")


def extract(catalog: Catalog, plan: Plan, settings: Settings) -> Report:
    """Fill the gaps of a plan.

    Parameters
    ----------
    catalog : Catalog
        The store.
    plan : Plan
        What is missing.
    settings : Settings
        How to run.

    Returns
    -------
    Report
        What was done. Everything counted is durable.

    Raises
    ------
    ReadOnlyError
        If the store is read-only.
    DiskSpaceError, MemoryBudgetError
        If the work cannot fit; before the first forward pass.
    DiskSpaceError, ReadOnlyError, StoreUnavailableError
        If the disk fills up, is taken away or fails meanwhile: what was published before is kept
        (`n_done`), and what was computed beyond it is not (`n_lost`).
    ExtractionInterrupted
        If SIGINT (Ctrl-C), SIGTERM or SIGUSR1 came: the batch at hand is finished, unless a second
        Ctrl-C comes, and what was computed is kept. Handlers are installed as `Interrupts` says.
    """
    report = Report()
    if not any(len(gap.compute) or len(gap.derive) for gap in plan.gaps):
        return report
    catalog.require_writable("what is missing")
    catalog.blobs.now()  # writes, so that what forbids writing shows before any work
    require_disk_space(catalog, plan)
    observations = Observations()
    stop = Interrupts()
    try:
        with stop:
            plan, report.n_derived = derive(catalog, plan, stop)
            for group in plan.groups:
                with stop.waiting():  # a network that is being loaded or fetched can be left
                    plan.model.network()
                run = _Run(catalog, plan, group, settings, observations, stop)
                try:
                    run.go()
                finally:
                    report.n_computed += run.n_done
        stop.check()  # also if all is done: whoever asked this process to stop means what follows
    except KeyboardInterrupt as err:
        raise _interrupted(plan, report, stop.signal or signal.SIGINT) from err
    except Exception as err:
        if stop.signal is not None:  # the error says more, but must not hide that
            err.add_note(f"{stop.signal.name} asked the extraction to stop as well.")
        raise
    finally:
        _warn_once(observations, plan)
    report.failures = observations.failures
    report.failed = tuple(sorted(observations.failed))
    return report


class _Run:
    """One session of a network over one group of images."""

    def __init__(
        self,
        catalog: Catalog,
        plan: Plan,
        group: Group,
        settings: Settings,
        observations: Observations,
        stop: Interrupts,
    ) -> None:
        self.n_done = 0
        """Images of which every row is published."""
        self._n_computed = 0
        self._catalog = catalog
        self._plan = plan
        self._group = group
        self._settings = settings
        self._observations = observations
        self._stop = stop
        self._network: Network = plan.model.network()
        self._wanted: list[Wanted] = [gap.wanted for gap in group.gaps]
        self._precision: Precision = self._wanted[0].feature.precision
        # Two readouts of one module share its tap: the network is asked for it once.
        self._taps: list[Tap] = list(dict.fromkeys(w.feature.tap for w in self._wanted))
        self._batch_size = self._choose_batch_size()
        self._n_threads = get_options().n_threads
        self._id = ""

    def go(self) -> None:
        """Run every image of the group and publish its rows."""
        options = get_options()
        shares = divide_memory(self._wanted, self._plan.model.record.input_shape, self._batch_size)
        columns = [(w, self._catalog.column(w.key)) for w in self._wanted]
        with self._network.open(
            self._taps,
            device=self._settings.device,
            precision=self._precision,
            n_threads=self._n_threads,
        ) as session:
            self._tell(
                RunStarted(
                    self._plan.model.record.label,
                    len(self._group.images),
                    tuple(w.module for w in self._wanted),
                    session.device,
                    self._batch_size,
                )
            )
            writer = SlotWriter(
                columns,
                queue_nbytes=shares.queue,
                buffer_nbytes=shares.buffers,
                commit_interval_s=options.commit_interval_s,
            )
            try:
                with writer:
                    self._loop(session, writer)
            except (DiskSpaceError, ReadOnlyError, StoreUnavailableError) as err:
                raise self._with_numbers(err, writer.n_published) from err
            finally:
                self.n_done = writer.n_published
                self._tell(RunDone(self.n_done))

    def _loop(self, session: Session, writer: SlotWriter) -> None:
        images = self._plan.images
        decode = self._plan.model.record.spec.preprocessing["decode"]
        batches = iterate_batches(
            images,
            self._group.images,
            policy=DecodePolicy(**decode),  # type: ignore[arg-type]
            transform=self._network.transform,
            batch_size=self._batch_size,
            n_workers=get_options().n_decode_workers,
            observations=self._observations,
        )
        n_failed = len(self._observations.failed)
        try:
            while True:
                writer.require_working()  # computing what cannot be kept helps nobody
                with self._stop.waiting():
                    batch = next(batches, None)
                if batch is None:
                    break
                writer.require_working()
                with self._stop.computing():
                    results = self._forward(session, batch)
                self._n_computed += len(batch.images)
                for part, outputs in results:
                    self._put(writer, session, part, outputs)
                failed = len(self._observations.failed)
                self._tell(BatchDone(len(batch.images) + failed - n_failed))
                n_failed = failed
        finally:
            self._stop.hold()  # what is buffered is published whatever comes
            batches.close()  # type: ignore[attr-defined]
            if self._stop.signal is not None:
                self._tell(StopHeard(self._stop.signal.name))

    def _forward(
        self, session: Session, batch: Batch
    ) -> list[tuple[NDArray[np.intp], list[NDArray[np.float32]]]]:
        """Run a batch, in smaller pieces where the device has not enough memory."""
        try:
            return self._pieces(session, batch)
        except DeviceMemoryError as err:
            if self._batch_size == 1:
                raise
            halved = self._batch_size // 2
            while True:
                self._batch_size, self._id = halved, ""  # another size is another run
                self._tell(BatchSizeHalved(halved))
                try:
                    return self._pieces(session, batch)
                except DeviceMemoryError:
                    if halved == 1:
                        raise err from None
                    halved //= 2

    def _pieces(
        self, session: Session, batch: Batch
    ) -> list[tuple[NDArray[np.intp], list[NDArray[np.float32]]]]:
        results = []
        for start in range(0, len(batch.images), self._batch_size):
            part = batch.images[start : start + self._batch_size]
            inputs = batch.inputs[start : start + self._batch_size]
            if len(inputs) < self._batch_size:  # the last piece of a batch of odd size
                padding = np.repeat(inputs[:1], self._batch_size - len(inputs), axis=0)
                inputs = np.concatenate([inputs, padding])
            outputs = session.forward(inputs)
            results.append((part, [output[: len(part)] for output in outputs]))
        return results

    def _put(
        self,
        writer: SlotWriter,
        session: Session,
        part: NDArray[np.intp],
        outputs: list[NDArray[np.float32]],
    ) -> None:
        if not self._id:
            self._id = self._catalog.create_run(self._facts(session))
        by_tap = dict(zip(self._taps, outputs, strict=True))
        rows = []
        for wanted in self._wanted:
            full = by_tap[wanted.feature.tap]
            if full.shape[1:] != wanted.full_shape:
                raise InvalidInputError(
                    f"{wanted.module} gave {full.shape[1:]} per image, and {wanted.full_shape} "
                    "when it was probed: its shape depends on the image, so it cannot be one "
                    "array. Give fs.preprocess(size=…) so that all images have one size.",
                    module=wanted.module,
                )
            rows.append(apply_readout(wanted.feature.readout, full))
        digests = self._plan.images.digests[part]
        writer.put(digests, rows, range(len(rows)), self._id)

    def _with_numbers(self, err: FeatureStoreError, n_done: int) -> FeatureStoreError:
        """Say what an error of the store cost, besides what went wrong."""
        n_lost, n_left = self._n_computed - n_done, len(self._group.images) - n_done
        needed = sum(gap.nbytes for gap in self._group.gaps) * n_left // len(self._group.images)
        free = None
        with contextlib.suppress(OSError):  # of a disk that does not answer either
            free = self._catalog.free_nbytes()
        room = ""
        if isinstance(err, DiskSpaceError) and free is not None:
            room = (
                f" {format_nbytes(free)} are free where up to {format_nbytes(needed)} were still "
                "to be written; a quota may allow less."
            )
        return type(err)(
            f"{err}{room} Of {len(self._group.images)} images {n_done} were computed and are kept; "
            f"{n_lost} more were computed, could not be kept and will be computed again.",
            **{
                **err.facts,
                "n_done": n_done,
                "n_lost": n_lost,
                "n_missing": n_left,
                "needed_nbytes": needed,
                "free_nbytes": free,
            },
        )

    def _choose_batch_size(self) -> int:
        if self._plan.model.record.row_depends_on_batch:
            return 1
        return self._settings.batch_size or self._network.default_batch_size(self._settings.device)

    def _facts(self, session: Session) -> dict[str, Json]:
        return {
            "model": self._plan.model.key,
            "device": session.device,
            "precision": self._precision,
            "batch_size": self._batch_size,
            "n_threads": self._n_threads,
            "environment": dict(self._network.environment()),
        }

    def _tell(self, event: Event) -> None:
        for listener in self._settings.listeners:
            listener(event)


def _interrupted(plan: Plan, report: Report, number: signal.Signals) -> ExtractionInterrupted:
    left = plan.n_missing - report.n_computed
    how = "Ctrl-C" if number == signal.SIGINT else number.name
    rest = f"{left} are left. The same call goes on from there." if left else "None are left."
    return ExtractionInterrupted(
        f"Stopped by {how}. The rows of every finished batch are kept ({report.n_computed} "
        f"images). {rest}",
        signal=int(number),
        n_done=report.n_computed,
        n_missing=left,
    )


def _warn_once(observations: Observations, plan: Plan) -> None:
    text = describe_notes(observations.notes, plan.n_missing)
    if text:
        warnings.warn(text, FeatureStoreWarning, stacklevel=4)
