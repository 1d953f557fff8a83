"""A fused model finds what it found before, follows its weights, and is saved and trained as it was."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detkit.backbones import BACKBONES
from detkit.config.build import build_detector
from detkit.config.experiment import Config, EvaluateOptions, check_model
from detkit.config.schema import Place
from detkit.data.resize import Resize
from detkit.detector import Detector, read_weights
from detkit.engine.options import TrainOptions
from detkit.heads.yolo import YOLO
from detkit.speedups.fuse import _Packed, fuse_batchnorms
from detkit.structures import Detections, Limits, Sample

CLASSES = ("circle", "square")
ANCHORS = [[8.0 * k, 8.0 * k] for k in range(1, 5)]
YOLO_HEAD = {"name": "yolo", "anchors": ANCHORS}
FPN = {"name": "fpn", "out": 8, "kernel": 3}
CONV = "convolutional batch_normalize=1 size=3 pad=1"
# A layer that is added to and routed on, and one that nothing follows.
GRAPH = [
    *(f"{CONV} filters=8 stride=4 activation=leaky", f"{CONV} filters=16 stride=2 activation=linear"),
    *(f"{CONV} filters=16 activation=mish", "shortcut from=-2 activation=linear", "route layers=-1,-3"),
    *(f"{CONV} filters=12 groups=4 activation=relu", f"{CONV} filters=24 stride=2 activation=linear"),
]
# How many of all BatchNorms stay: those before the convolution, and what a second reader sees.
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "same padding": ({"backbone": {"name": "efficientnet_lite0", "taps": [2, 3]}}, 0),
    "squeeze and excitation": ({"backbone": {"name": "mobilenet_v3_small", "taps": [2, 3]}}, 0),
    "residual, frozen": ({"backbone": {"name": "resnet18", "taps": [2, 3], "frozen": "all"}}, 0),
    "split channels": ({"backbone": {"name": "shufflenet_v2_x0_5", "taps": [2, 3]}}, 0),
    "without any": ({"backbone": {"name": "vgg11", "taps": [2, 3]}, "neck": {"name": "identity"}}, 0),
    "several scales": ({"backbone": {"name": "resnet18", "taps": [3], "scales": [1.0, 0.5]}}, 0),
    "stem of each level": (
        {"backbone": {"name": "mobilenet_v3_small", "taps": [2, 3]}, "head": {**YOLO_HEAD, "stem": 2}},
        0,
    ),
    "stem of all levels": (
        {
            "backbone": {"name": "mobilenet_v3_small", "taps": [2, 3]},
            "head": {**YOLO_HEAD, "stem": 1, "share_stem": True},
        },
        0,
    ),
    "branches of a head without anchors": (
        {
            "backbone": {"name": "resnet18", "taps": [2, 3]},
            "head": {"name": "aligned", "width": 16, "stem": 2, "kernel": 3, "act": "leaky", "norm_eps": 1e-3},
        },
        0,
    ),
    "a Darknet graph": (
        {"backbone": {"name": "darknet", "graph": GRAPH, "outputs": [5, 6], "frozen": 1}, "neck": {"name": "identity"}},
        0,
    ),
    "norm before": ({"backbone": {"name": "densenet121", "taps": [1, 2]}}, 20),
    "regions": (
        {
            "backbone": {"name": "resnet18", "taps": [2, 3]},
            "proposals": {"name": "rpn", "scales": [16.0, 32.0], "samples": 16},
            "head": {"name": "roi", "layers": "mlp", "size": 3, "width": 16, "rois": 8},
        },
        0,
    ),
    "whole images": (
        {"backbone": {"name": "googlenet"}, "neck": {"name": "identity"}, "head": {"name": "classify"}},
        0,
    ),
}


def build(values: dict[str, Any]) -> Detector:
    torch.manual_seed(0)
    model = {"size": 64, "neck": FPN, "head": YOLO_HEAD, **values}
    config = Config({}, check_model(model, Place("test.yaml")), {}, TrainOptions(), EvaluateOptions())
    return lived_in(build_detector(config, CLASSES))


def lived_in(detector: Detector) -> Detector:
    """With running statistics, scales and shifts as training might leave them."""
    generator = torch.Generator().manual_seed(1)
    for norm in norms(detector):
        norm.running_mean.uniform_(-0.2, 0.2, generator=generator)
        norm.running_var.uniform_(0.6, 1.6, generator=generator)
        with torch.no_grad():
            norm.weight.uniform_(0.7, 1.3, generator=generator)
            norm.bias.uniform_(-0.3, 0.3, generator=generator)
    return detector.eval()


def norms(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def pixels(detector: Detector) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (2, 3, *detector.resize.input_size), dtype=torch.uint8, generator=generator)


def answers(detector: Detector) -> dict[str, Tensor]:
    """Of ``raw``, in whatever mode of gradients the caller is in: with gradients nothing is folded."""
    rois = [torch.tensor([[3.0, 5, 40, 60], [10, 10, 30, 20]])] * 2 if detector.proposals is not None else None
    return detector.raw(pixels(detector), rois)


def assert_same(detector: Detector) -> None:
    """With the layers as they are, and folded."""
    wanted = answers(detector)
    with torch.inference_mode():
        found = answers(detector)
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        if value.is_floating_point():
            scale = max(1.0, value.abs().max().item())
            torch.testing.assert_close(found[name], value.detach(), rtol=0, atol=1e-5 * scale, msg=name)


def called(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a BatchNorm is computed where the detector detects."""
    calls: list[Any] = []
    real = torch.nn.functional.batch_norm
    with monkeypatch.context() as patch, torch.inference_mode():
        patch.setattr(torch.nn.functional, "batch_norm", lambda *a, **k: (calls.append(a), real(*a, **k))[1])
        answers(detector)
    return len(calls)


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def everything(detector: Detector) -> Detections:
    return detector.predict(image(), conf=0.0)


@pytest.mark.parametrize("name", MODELS)
def test_it_computes_the_same_and_the_layers_are_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values, stay = MODELS[name]
    detector = build(values)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    detector_calls = called(detector, monkeypatch)
    assert fuse_batchnorms(detector) + stay == len(norms(detector))
    assert called(detector, monkeypatch) == (stay if detector_calls else 0)
    assert_same(detector)
    after = detector.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", sorted(set(BACKBONES) - {"identity", "darknet"}))
def test_every_backbone_is_folded(name: str) -> None:
    anchors = [[8.0 * k, 8.0 * k] for k in range(1, 13)]
    detector = build(
        {"backbone": {"name": name}, "neck": {"name": "identity"}, "head": {**YOLO_HEAD, "anchors": anchors}}
    )
    before = {"densenet121": 62, "densenet169": 86, "densenet201": 102}.get(name, 0)  # norms before convolutions
    assert fuse_batchnorms(detector) == len(norms(detector)) - before
    assert_same(detector)


class Net(nn.Module):
    """A backbone of one map; ``run`` is what it computes from its layers."""

    mean, std, channels, strides, offsets = (127.0,) * 3, (64.0,) * 3, [8], [2], [1.0]

    def __init__(self, run: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        convolutions = (nn.Conv2d(8, 8, 3, padding=1, bias=bias) for bias in (False, True))
        self.chain = nn.Sequential(*(layer for conv in convolutions for layer in (conv, nn.BatchNorm2d(8))))

    conv, norm, other, second = (property(lambda net, k=k: net.chain[k]) for k in range(4))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.run(self, self.first(x))]


def net(run: Callable[[Any, Tensor], Tensor]) -> Detector:
    torch.manual_seed(0)
    head = YOLO([8], [2], 2, anchors=[[8.0, 8.0], [16.0, 16.0]])
    made = Detector(Net(run), nn.Identity(), head, classes=CLASSES, resize=Resize(16, stride=2), config={})
    return lived_in(made)


def summed(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.norm(y) + y


def changed_in_place(net: Net, x: Tensor) -> Tensor:
    return net.norm(net.conv(x).relu_())


def part(net: Net, x: Tensor) -> Tensor:
    return net.norm(net.conv(x)[:, :, 1:])


# What a net computes, and how many BatchNorms are still computed: all of them where one pair reads otherwise.
RUNS: dict[str, tuple[Callable[[Any, Tensor], Tensor], int]] = {
    "two in a row": (lambda net, x: net.second(net.other(net.norm(net.conv(x)))), 0),
    "as a whole": (lambda net, x: net.chain(x), 0),
    "a norm on a norm": (lambda net, x: net.second(net.norm(net.conv(x))), 1),
    "a pair called twice": (lambda net, x: net.norm(net.conv(net.norm(net.conv(x)))), 0),
    "read by a sum too": (summed, 1),
    "read by two norms": (lambda net, x: (lambda y: net.norm(y) + net.second(y))(net.conv(x)), 2),
    "read twice by one norm": (lambda net, x: (lambda y: net.norm(y) + net.norm(y))(net.conv(x)), 2),
    "one convolution, two norms": (lambda net, x: net.second(net.conv(net.norm(net.conv(x)))), 2),
    "one norm, two convolutions": (lambda net, x: net.norm(net.conv(net.norm(net.other(x)))), 2),
    "the norm elsewhere too": (lambda net, x: net.norm(net.conv(net.norm(x))), 1),
    "the convolution elsewhere too": (lambda net, x: net.norm(net.conv(net.conv(x))), 1),
    "changed in place before": (changed_in_place, 1),
    "only a part is read": (part, 1),
    "not called": (lambda net, x: x, 0),
}


@pytest.mark.parametrize("name", RUNS)
def test_only_pairs_that_read_nothing_but_each_other_are_folded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, computed = RUNS[name]
    detector = net(run)
    fuse_batchnorms(detector)
    assert called(detector, monkeypatch) == computed
    assert_same(detector)


def test_layers_in_two_places_or_in_no_known_order_are_left_alone() -> None:
    detector = net(RUNS["as a whole"][0])
    detector.backbone.alias = detector.backbone.chain[0]
    assert fuse_batchnorms(detector) == 1
    detector = net(RUNS["two in a row"][0])
    detector.backbone.chain = nn.ModuleList(detector.backbone.chain)
    assert fuse_batchnorms(detector) == 0


class Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Centred(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class Scaled(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def _tied(detector: Any) -> None:
    detector.backbone.other.weight = detector.backbone.conv.weight


def _layer(k: int, layer: nn.Module) -> Callable[[Any], None]:
    def change(detector: Any) -> None:
        detector.backbone.chain[k] = layer

    return change


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("change", "computed"),
    [
        (_layer(0, Doubled(8, 8, 3, padding=1)), {1}),
        (_layer(0, Centred(8, 8, 3, padding=1)), {1}),
        (_layer(1, Scaled(8).eval()), {1}),
        (_layer(1, nn.BatchNorm2d(8, affine=False).eval()), {0, 1}),
        (_layer(1, nn.BatchNorm2d(8, track_running_stats=False).eval()), {1}),
        (lambda d: d.backbone.norm.train(), {1}),
        (_tied, {0}),
        (lambda d: nn.utils.parametrizations.weight_norm(d.backbone.conv), {1}),
        (lambda d: d.backbone.conv.register_forward_hook(lambda *a: None), {1}),
        (lambda d: d.backbone.norm.register_forward_pre_hook(lambda *a: None), {1}),
    ],
)
def test_layers_of_another_kind_are_left_as_they_are(
    change: Callable[[Any], Any], computed: set[int], first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changed before and after the pairs are sought."""
    detector = net(RUNS["two in a row"][0])
    if first:
        change(detector)
    fuse_batchnorms(detector)
    everything(detector)
    if not first:
        change(detector)
    detector.backbone.conv.eval()
    moves = detector.backbone.norm.training  # its statistics move with every pass
    assert called(detector, monkeypatch) in computed
    if not moves:
        assert_same(detector)


def _step(detector: Detector) -> None:
    optimizer = torch.optim.AdamW(detector.parameters(), lr=0.1)
    sum(value.square().sum() for name, value in detector.raw(pixels(detector)).items() if name != "grid").backward()
    optimizer.step()


def _statistics(detector: Detector) -> None:
    detector.backbone.train()
    detector.raw(pixels(detector))
    detector.eval()


def _data(detector: Detector) -> None:
    detector.train()
    detector.backbone.conv.weight.data.mul_(2)
    detector.eval()


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a training step": _step,
    "running statistics": _statistics,
    "other weights": lambda d: d.load_state_dict({k: v * 1.1 for k, v in d.state_dict().items()}),
    "one weight in place": lambda d: nn.init.ones_(d.backbone.other.weight),
    "a weight's tensor": lambda d: setattr(d.backbone.norm, "weight", nn.Parameter(torch.full((8,), 3.0))),
    "a weight's data": lambda d: setattr(d.backbone.conv.weight, "data", torch.ones(8, 8, 3, 3)),
    "data, and training": _data,
    "a layer": _layer(1, nn.Identity()),
    "another layer": _layer(1, nn.BatchNorm2d(8, eps=1.0).eval()),
    "a layer's setting": lambda d: setattr(d.backbone.norm, "eps", 2.0),
    "a part": lambda d: setattr(d, "backbone", net(RUNS["a norm on a norm"][0]).backbone),
    "the head": lambda d: nn.init.normal_(d.head.layers[0].weight),
    "the normalisation": lambda d: d.mean.zero_(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_detections_follow_the_model(name: str) -> None:
    detector = net(RUNS["two in a row"][0])
    assert fuse_batchnorms(detector) == 2
    with torch.inference_mode():
        old = detector.raw(pixels(detector))["boxes"]
    CHANGES[name](detector)
    assert_same(detector)
    with torch.inference_mode():
        assert not torch.allclose(detector.raw(pixels(detector))["boxes"], old, atol=1e-3)


def test_the_work_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = net(RUNS["two in a row"][0])
    fuse_batchnorms(detector)
    monkeypatch.setattr("detkit.speedups.fuse.fuse_conv_bn_weights", lambda *a: pytest.fail("folded again"))
    detector.threshold = 0.5
    detector.predict(image())
    detector.rescaled(2).predict(image())


def test_settings_and_hooks_of_the_model_hold() -> None:
    detector = build({"backbone": {"name": "mobilenet_v3_small", "taps": [2, 3]}, "head": {**YOLO_HEAD, "stem": 1}})
    fuse_batchnorms(detector)
    everything(detector)
    seen: list[Any] = []
    detector.backbone.register_forward_hook(lambda *a: seen.append(a))
    detector.head.options.candidates = 3
    assert len(everything(detector)) <= 3
    assert len(seen) == 1


def test_a_model_in_training_stays_in_training_and_learns_as_without() -> None:
    detector, plain = net(RUNS["two in a row"][0]), net(RUNS["two in a row"][0])
    fuse_batchnorms(detector)
    for model in (detector, plain):
        model.train()
        _step(model)
    state = plain.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in detector.state_dict().items())
    found = everything(detector)
    assert detector.training
    np.testing.assert_allclose(found.boxes, everything(plain).boxes, atol=1e-3)


def test_copies_and_files_hold_the_model_alone(tmp_path: Any) -> None:
    detector = build({"backbone": {"name": "mobilenet_v3_small", "taps": [2, 3]}})
    detector.save(tmp_path / "plain.safetensors")
    fuse_batchnorms(detector)
    size = len(pickle.dumps(detector))
    wanted = everything(detector)
    detector.save(tmp_path / "m.safetensors")
    saved, plain = (read_weights(tmp_path / name) for name in ("m.safetensors", "plain.safetensors"))
    assert saved.keys() == plain.keys()
    assert all(torch.equal(value, plain[name]) for name, value in saved.items())
    assert len(pickle.dumps(detector)) == size
    for twin in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        np.testing.assert_allclose(everything(twin).boxes, wanted.boxes, atol=1e-3)
        nn.init.zeros_(twin.neck.lateral[0][0].weight)
        assert_same(twin)
        assert_same(detector)


def test_a_model_made_in_inference_mode_detects_too() -> None:
    with torch.inference_mode():
        detector = net(RUNS["two in a row"][0])
        assert fuse_batchnorms(detector) == 0
    everything(detector)


@pytest.mark.parametrize("threads", [1, 2])
def test_packed_weights_answer_as_plain_ones(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, before, calls = lived_in(build(MODELS["same padding"][0])), torch.get_num_threads(), []
    packed: Any = _Packed.__call__
    monkeypatch.setattr(_Packed, "__call__", lambda self, *args: (calls.append(args[1].shape), packed(self, *args))[1])
    fuse_batchnorms(detector)
    try:
        torch.set_num_threads(threads)
        calls.clear()
        assert_same(detector)
        assert len(calls) == len(norms(detector)) - 3, "strided depthwise layers pad by themselves"
        images = {size: torch.rand(*size) * 255 for size in ((1, 3, 64, 96), (17, 3, 32, 32))}  # not as at first
        for image in images.values():
            plain = detector.raw(image)["boxes"].detach()
            with torch.inference_mode():
                torch.testing.assert_close(detector.raw(image)["boxes"], plain, rtol=0, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
            found = answers(detector)
            monkeypatch.setattr(_Packed, "__call__", lambda self, *args: self.plain(*args))
            wanted = answers(detector)
        assert all(torch.equal(found[name], value) for name, value in wanted.items())
    finally:
        torch.set_num_threads(before)


def test_without_onednn_weights_stay_in_torchs_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where torch is built for Apple's processors."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(_Packed, "__init__", lambda *_: pytest.fail("there is no oneDNN"))
    detector = lived_in(build(MODELS["same padding"][0]))
    assert fuse_batchnorms(detector)
    assert_same(detector)


def test_threads_share_a_detector() -> None:
    detector = build({"backbone": {"name": "mobilenet_v3_small", "taps": [2, 3]}})
    fuse_batchnorms(detector)
    samples = [Sample(image(seed)) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: detector.predict_samples([one], Limits(conf=0.0))[0], samples))
    for sample, detections in zip(samples, found, strict=True):
        again = detector.predict_samples([sample], Limits(conf=0.0))[0]
        np.testing.assert_allclose(detections.boxes, again.boxes, atol=1e-3)


def test_torchs_compiler_is_not_imported() -> None:
    """It takes seconds."""
    code = "import sys, detkit, numpy as np; detkit.load().predict(np.zeros((9, 9, 3), np.uint8)); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch._dynamo" not in done.stdout.split()
