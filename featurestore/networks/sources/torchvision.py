"""Every image model that torchvision lists: classification, segmentation, detection, quantised."""

from __future__ import annotations

import inspect
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

import torch
from torchvision import models

from featurestore.errors import InvalidInputError, ModelNotFoundError, did_you_mean
from featurestore.networks.checkpoints import (
    read_checkpoint,
    reconcile,
    require_fit,
    resize_outputs,
    with_entries,
)
from featurestore.networks.downloads import (
    cached_path,
    download_failed,
    fetch,
    require_hash,
    url_hash,
)
from featurestore.networks.sources.presets import resolve_transform
from featurestore.networks.sources.torch_network import TorchNetwork
from featurestore.networks.spec import ModelSpec
from featurestore.networks.structure import structure_digest
from featurestore.networks.weights import weights_digest
from featurestore.options import get_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torchvision.models import WeightsEnum

    from featurestore.networks.checkpoints import State
    from featurestore.networks.spec import ModelRequest
    from featurestore.typing import Json

# Not about single images.
_LEFT_OUT = ("torchvision.models.video", "torchvision.models.optical_flow")

USUAL_SIZE = 224  # of the input, where builders are not told another [px]

_building = threading.Lock()


class TorchvisionSource:
    """Models by the names of ``torchvision.models.list_models()``."""

    name = "torchvision"

    def model_names(self) -> list[str]:
        """List every image model.

        Returns
        -------
        list of str
            Sorted; models that others registered with torchvision are among them.
        """
        builders = {name: models.get_model_builder(name) for name in models.list_models()}
        return [
            name
            for name, builder in builders.items()
            if not builder.__module__.startswith(_LEFT_OUT)
        ]

    def weights_names(self, name: str) -> list[str]:
        """List the published weights of a model.

        Parameters
        ----------
        name : str
            A model's name.

        Returns
        -------
        list of str
            The default first.
        """
        return [member.name for member in _members(name)]

    def load(self, request: ModelRequest) -> TorchNetwork:
        """Build a network and load its weights.

        Parameters
        ----------
        request : ModelRequest
            Which model, with which weights and preprocessing.

        Returns
        -------
        TorchNetwork
            In host memory.

        Raises
        ------
        ModelNotFoundError
            If there is no such model, or no such weights, or they cannot be downloaded.
        InvalidInputError
            If the weights do not fit, or the preprocessing cannot be honoured.
        """
        self._require_model(request.name)
        published = _published(request)
        # What untrained and re-trained networks are evaluated with, too.
        member = published or _reference(request.name)
        transform = resolve_transform(
            None if member is None else member.transforms(),
            request.preprocess,
            request.transform,
            request.label,
        )
        module, arguments = _build(request, published, member)
        quantized = bool(arguments.get("quantize"))
        meta = {} if published is None else published.meta
        spec = ModelSpec(
            source=self.name,
            architecture=request.name,
            arguments=arguments,
            structure=structure_digest(module),
            weights=weights_digest(module.state_dict()),
            preprocessing=transform.to_json(),
        )
        return TorchNetwork(
            module,
            spec,
            transform,
            label=request.label,
            weights_label=_weights_label(request, published),
            licence=str(meta.get("license", "")),
            citation=str(meta.get("recipe", "")),
            only_device="cpu" if quantized else None,
            quantized_engine=_engine(request.name) if quantized else None,
        )

    def _require_model(self, name: str) -> None:
        names = self.model_names()
        if name not in names:
            raise ModelNotFoundError(
                f"torchvision has no image model {name!r}.{did_you_mean(name, names)} "
                f"List its {len(names)} models with fs.models(source='torchvision'); models of "
                "other sources are written 'source/name'.",
                model=name,
                choices=names,
            )


def _members(name: str) -> list[WeightsEnum]:
    try:
        enum = models.get_model_weights(name)
    except ValueError:  # its builder does not say which weights it takes
        return []
    members = list(enum)
    default = getattr(enum, "DEFAULT", None)
    return sorted(members, key=lambda member: member is not default)


def _reference(name: str) -> WeightsEnum | None:
    members = _members(name)
    first = [member for member in members if member.name == "IMAGENET1K_V1"]
    # vit_h_14 has none, and lists first what was tuned for pictures of 518 pixels, which the
    # network as it is built without weights does not take.
    usual = [member for member in members if max(member.meta.get("min_size", (1,))) <= USUAL_SIZE]
    return next(iter([*first, *usual, *members]), None)


def _published(request: ModelRequest) -> WeightsEnum | None:
    word = request.weights
    if word == "random" or word.startswith(("file:", "https://")):
        return None
    members = _members(request.name)
    names = [member.name for member in members]
    if word == "DEFAULT" and members:
        return members[0]
    for member in members:
        if member.name.lower() == word.lower():
            return member
    raise ModelNotFoundError(
        f"{request.label} has no published weights {word!r}.{did_you_mean(word.upper(), names)} "
        f"It has: {', '.join(names) or 'none'}. Others: weights='random', or a checkpoint file.",
        weights=word,
        choices=names,
    )


def _weights_label(request: ModelRequest, published: WeightsEnum | None) -> str:
    if published is not None:
        return str(published.name)
    if request.weights == "random":
        return f"random(seed={request.seed})"
    file = request.weights_path or request.weights.partition("#")[0]
    return Path(file).name


def _build(
    request: ModelRequest, published: WeightsEnum | None, member: WeightsEnum | None
) -> tuple[torch.nn.Module, dict[str, Json]]:
    builder = models.get_model_builder(request.name)
    arguments: dict[str, Json] = {}
    if "quantize" in inspect.signature(builder).parameters:
        arguments["quantize"] = True
    with _construction(request.seed or 0):
        if request.weights == "random":
            return _untrained(builder, arguments), arguments
        if published is not None:
            return _with_state(builder, published, _download(published), arguments), arguments
        if request.weights_path is not None:
            state = read_checkpoint(
                Path(request.weights_path), request.weights.removeprefix("file:")
            )
        else:
            state = read_checkpoint(fetch(request.weights))
        return _retrained(builder, member, state, arguments, request.label)


def _untrained(
    builder: Callable[..., Any], arguments: Mapping[str, Any], **more: Any
) -> torch.nn.Module:
    # Segmentation and detection would download a pretrained backbone.
    if "weights_backbone" in inspect.signature(builder).parameters:
        more["weights_backbone"] = None
    module: torch.nn.Module = builder(weights=None, **arguments, **more)
    return module


def _with_state(
    builder: Callable[..., Any], member: WeightsEnum, state: State, arguments: Mapping[str, Any]
) -> torch.nn.Module:
    """Let torchvision build with the settings of a member, but load a state dict of ours.

    Builders do more than load: inception_v3 turns on ``transform_input``, detection sets the
    epsilon of batch norms afterwards. They ask the member for its state dict, so that is what
    is replaced, while nobody else builds; torchvision's own would unpickle whatever it finds.
    """
    with _building:
        member.__dict__["get_state_dict"] = lambda *_args, **_kwargs: state
        try:
            module: torch.nn.Module = builder(weights=member, progress=False, **arguments)
        finally:
            del member.__dict__["get_state_dict"]
    return module


def _retrained(
    builder: Callable[..., Any],
    member: WeightsEnum | None,
    state: State,
    arguments: dict[str, Json],
    label: str,
) -> tuple[torch.nn.Module, dict[str, Json]]:
    """Build with the settings of the published weights, and load a checkpoint."""
    module = _untrained(builder, arguments, **_full_outputs(builder, member))
    complete = module.state_dict()
    misfit = f"{label} and its checkpoint do not fit"
    if member is not None:
        # What the builder checks and then drops (auxiliary outputs), and classifiers of another
        # size: lent by the twin, so that the builder gets everything it expects.
        lent = {name: value for name, value in complete.items() if not _fits(state, name, value)}
        handed = with_entries(state, lent)
        try:
            module = _with_state(builder, member, handed, arguments)
        except RuntimeError:  # torch's own list of what does not fit; ours is shorter
            require_fit(complete, state, misfit)
            raise
        state = _given_back(handed, state, lent)
    resized = resize_outputs(module, state)
    state = reconcile(module.state_dict(), complete, state)
    require_fit(module.state_dict(), state, misfit)
    module.load_state_dict(state)
    return module, {**arguments, **({} if resized is None else {"num_classes": resized})}


def _given_back(handed: State, state: State, lent: Mapping[str, object]) -> State:
    # Some builders (densenet) rename the entries of older files where they stand.
    renamed = with_entries(handed, {name: state[name] for name in state if name in handed})
    for name, value in handed.items():
        if value is lent.get(name) and name not in state:
            del renamed[name]
    return renamed


def _full_outputs(builder: Callable[..., Any], member: WeightsEnum | None) -> dict[str, Any]:
    auxiliary = "aux_loss" in inspect.signature(builder).parameters
    return {"aux_loss": True} if auxiliary and member is not None else {}


def _fits(state: State, name: str, expected: object) -> bool:
    given = state.get(name)
    if isinstance(given, torch.Tensor) and isinstance(expected, torch.Tensor):
        return given.shape == expected.shape
    return name in state


def _download(member: WeightsEnum) -> State:
    path = cached_path(member.url)
    if path.is_file():
        require_hash(path, url_hash(member.url))
    progress = get_options().progress is not False
    try:
        state: State = member.get_state_dict(
            progress=progress, check_hash=True, weights_only=True, map_location="cpu"
        )
    except (URLError, OSError) as err:
        raise download_failed(f"{member} ({member.url})", path) from err
    except RuntimeError as err:
        raise InvalidInputError(f"{member.url} is not what its hash promises: {err}") from err
    return state


@contextmanager
def _construction(seed: int) -> Iterator[None]:
    """Build as torchvision does by itself, whatever the caller has set."""
    backend: Any = torch.backends.quantized
    engine, dtype = backend.engine, torch.get_default_dtype()
    with (
        torch.inference_mode(False),
        torch.random.fork_rng(devices=[]),
        torch.device("cpu"),
        warnings.catch_warnings(),
    ):
        # About initial values and about quantisation moving house: no caller can heed them.
        warnings.simplefilter("ignore")
        try:
            torch.set_default_dtype(torch.float32)
            # The CPU's generator only: manual_seed would also reseed the caller's GPUs.
            torch.default_generator.manual_seed(seed)
            yield
        finally:
            torch.set_default_dtype(dtype)
            backend.engine = engine


def _engine(name: str) -> str:
    return "qnnpack" if "mobilenet" in name else "fbgemm"
