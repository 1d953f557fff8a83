"""The folded view finds what the model finds, follows its weights, and leaves the model alone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detkit.config import build_detector
from detkit.config.experiment import Config, EvaluateOptions, check_model
from detkit.config.schema import Place
from detkit.data.resize import Resize
from detkit.detector import Detector
from detkit.engine.options import TrainOptions
from detkit.heads.yolo import YOLO
from detkit.speedups.fuse import _Reads, ready
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


def assert_same(detector: Detector, view: Detector) -> None:
    with torch.inference_mode():
        rois = [torch.tensor([[3.0, 5, 40, 60], [10, 10, 30, 20]])] * 2 if detector.proposals is not None else None
        wanted, found = (model.raw(pixels(detector), rois) for model in (detector, view))
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        if value.is_floating_point():
            scale = max(1.0, value.abs().max().item())
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-4 * scale, msg=name)


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def everything(detector: Detector) -> Detections:
    return detector.predict(image(), conf=0.0)


@pytest.mark.parametrize("name", MODELS)
def test_the_view_computes_the_same_and_the_model_is_left_alone(name: str) -> None:
    values, stay = MODELS[name]
    detector = build(values)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    view = ready(detector)
    assert len(norms(view)) == stay
    assert_same(detector, view)
    after = detector.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


class Net(nn.Module):
    """A backbone of one map; ``run`` is what it computes from its layers."""

    mean, std, channels, strides, offsets = (127.0,) * 3, (64.0,) * 3, [8], [2], [1.0]

    def __init__(self, run: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.conv, self.other = (nn.Conv2d(8, 8, 3, padding=1, bias=bias) for bias in (False, True))
        self.norm, self.second = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

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


# What a net computes, and how many of the BatchNorms that it calls are folded.
RUNS: dict[str, tuple[Callable[[Any, Tensor], Tensor], int]] = {
    "two in a row": (lambda net, x: net.second(net.other(net.norm(net.conv(x)))), 2),
    "a norm on a norm": (lambda net, x: net.second(net.norm(net.conv(x))), 1),
    "a pair called twice": (lambda net, x: net.norm(net.conv(net.norm(net.conv(x)))), 1),
    "read by a sum too": (summed, 0),
    "read by two norms": (lambda net, x: (lambda y: net.norm(y) + net.second(y))(net.conv(x)), 0),
    "read twice by one norm": (lambda net, x: (lambda y: net.norm(y) + net.norm(y))(net.conv(x)), 0),
    "one convolution, two norms": (lambda net, x: net.second(net.conv(net.norm(net.conv(x)))), 0),
    "one norm, two convolutions": (lambda net, x: net.norm(net.conv(net.norm(net.other(x)))), 0),
    "the norm elsewhere too": (lambda net, x: net.norm(net.conv(net.norm(x))), 0),
    "the convolution elsewhere too": (lambda net, x: net.norm(net.conv(net.conv(x))), 0),
    "changed in place before": (changed_in_place, 0),
    "only a part is read": (part, 0),
    "not called": (lambda net, x: x, 0),
}


@pytest.mark.parametrize("name", RUNS)
def test_only_pairs_that_read_nothing_but_each_other_are_folded(name: str) -> None:
    run, count = RUNS[name]
    detector = net(run)
    view = ready(detector)
    assert len(norms(view)) == 2 - count
    assert_same(detector, view)
    if not count:
        assert view.backbone is detector.backbone


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


@pytest.mark.parametrize(
    ("change", "count"),
    [
        (lambda d: setattr(d.backbone, "conv", Doubled(8, 8, 3, padding=1)), 1),
        (lambda d: setattr(d.backbone, "conv", Centred(8, 8, 3, padding=1)), 1),
        (lambda d: setattr(d.backbone, "norm", Scaled(8).eval()), 1),
        (lambda d: setattr(d.backbone, "norm", nn.BatchNorm2d(8, affine=False).eval()), 2),
        (lambda d: setattr(d.backbone, "norm", nn.BatchNorm2d(8, track_running_stats=False).eval()), 1),
        (lambda d: d.backbone.norm.train(), 1),
        (_tied, 0),
        (lambda d: nn.utils.parametrizations.weight_norm(d.backbone.conv), 1),
        (lambda d: d.backbone.conv.register_forward_hook(lambda *a: None), 1),
        (lambda d: d.backbone.norm.register_forward_pre_hook(lambda *a: None), 1),
    ],
)
def test_layers_of_another_kind_are_left_as_they_are(change: Callable[[Any], Any], count: int) -> None:
    """Each is changed after the first look, so that it must be seen."""
    detector = net(RUNS["two in a row"][0])
    everything(detector)
    change(detector)
    detector.backbone.conv.eval()
    view = ready(detector)
    assert len(norms(view)) == 2 - count
    if detector.backbone.norm.training:
        return  # its statistics move with every look
    assert_same(detector, view)


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
    "a layer": lambda d: setattr(d.backbone, "norm", nn.Identity()),
    "a layer's setting": lambda d: setattr(d.backbone.norm, "eps", 2.0),
    "a part": lambda d: setattr(d, "backbone", net(RUNS["a norm on a norm"][0]).backbone),
    "what it computes": lambda d: setattr(d.backbone, "run", summed),
    "the head": lambda d: nn.init.normal_(d.head.layers[0].weight),
    "the normalisation": lambda d: d.mean.zero_(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_view_follows_the_model(name: str) -> None:
    detector = net(RUNS["two in a row"][0])
    with torch.inference_mode():
        old = detector.raw(pixels(detector))["boxes"]
    ready(detector)
    CHANGES[name](detector)
    assert_same(detector, ready(detector))
    with torch.inference_mode():
        assert not torch.allclose(detector.raw(pixels(detector))["boxes"], old, atol=1e-3)


def test_the_work_is_done_once() -> None:
    detector = net(RUNS["two in a row"][0])
    first = ready(detector)
    detector.threshold = 0.5
    detector.predict(image())
    second = ready(detector)
    assert second.backbone is first.backbone
    assert second.threshold == 0.5
    assert ready(detector.rescaled(2)).backbone is first.backbone


def test_settings_and_hooks_of_the_model_hold_in_the_view() -> None:
    detector = build({"backbone": {"name": "mobilenet_v3_small", "taps": [2, 3]}, "head": {**YOLO_HEAD, "stem": 1}})
    everything(detector)
    seen: list[Any] = []
    detector.backbone.register_forward_hook(lambda *a: seen.append(a))
    detector.head.candidates = 3
    assert len(everything(detector)) <= 3
    assert len(seen) == 1


def test_a_model_in_training_is_not_folded_and_stays_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = net(RUNS["two in a row"][0]).train()
    monkeypatch.setattr("detkit.speedups.fuse.fold", lambda detector: pytest.fail("folded"))
    everything(detector)
    assert detector.training


def test_copies_and_files_hold_the_model_alone(tmp_path: Any) -> None:
    detector = build({"backbone": {"name": "mobilenet_v3_small", "taps": [2, 3]}})
    plain = pickle.dumps(detector)
    wanted = everything(detector)
    detector.save(tmp_path / "m.safetensors")
    assert len(pickle.dumps(detector)) < len(plain) + 1000
    for twin in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        np.testing.assert_allclose(everything(twin).boxes, wanted.boxes, atol=1e-3)
        nn.init.zeros_(twin.neck.lateral[0][0].weight)
        assert_same(twin, ready(twin))
        assert_same(detector, ready(detector))


def test_threads_share_a_detector() -> None:
    detector = build({"backbone": {"name": "mobilenet_v3_small", "taps": [2, 3]}})
    samples = [Sample(image(seed)) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: detector.predict_samples([one], Limits(conf=0.0))[0], samples))
    for sample, detections in zip(samples, found, strict=True):
        again = detector.predict_samples([sample], Limits(conf=0.0))[0]
        np.testing.assert_allclose(detections.boxes, again.boxes, atol=1e-3)


def test_torchs_compiler_is_not_imported() -> None:
    """Torch wraps such methods by default; the wrapper imports it, which takes seconds."""
    assert not hasattr(_Reads.__torch_dispatch__, "__wrapped__")
