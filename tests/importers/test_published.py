"""NanoDet-Plus and YOLOX: random weights under the published names, by tensors' names and as deployed, answer as the
networks do that are written down here layer by layer."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.cli import main
from detkit.config.build import load_detector
from detkit.data.names import COCO_CLASSES
from detkit.data.toy import toy_sample
from detkit.detector import Detector
from detkit.errors import DetkitError
from detkit.importers import nanodet, yolox
from detkit.importers.darknet import untrained_detector
from detkit.importers.nanodet import import_nanodet
from detkit.importers.yolox import import_yolox
from detkit.io.images import write_image

PIXELS = torch.from_numpy(np.stack([toy_sample(i, 64).image for i in range(2)])).permute(0, 3, 1, 2).double()


class Net:
    """A network whose layers come to be, under their published names, when they are first computed.

    Attributes:
        state: The tensors by name.
        folded: Filters and biases of each convolution with its BatchNorm in them, in the order of computation.
    """

    def __init__(self, act: Callable[[Tensor], Tensor], eps: float) -> None:
        self.act, self.eps, self.state, self.folded = act, eps, dict[str, Tensor](), list[tuple[Tensor, Tensor]]()
        self.random = torch.Generator().manual_seed(0)

    def conv(
        self, x: Tensor, outputs: int, kernel: int, names: tuple[str, str], stride: int = 1, deep: bool = False,
        act: bool = True,
    ) -> Tensor:  # fmt: skip
        """Convolution (each channel by itself if ``deep``) and BatchNorm of these names, perhaps the activation."""
        groups, state = x.shape[1] if deep else 1, self.state
        conv, norm = names
        inputs = x.shape[1] // groups
        scale = (inputs * kernel**2) ** -0.5
        made = torch.randn(outputs, inputs, kernel, kernel, generator=self.random) * scale
        weight = state.setdefault(f"{conv}.weight", made).double()
        x = F.conv2d(x, weight, None, stride, kernel // 2, groups=groups)
        var, mean = torch.var_mean(x, (0, 2, 3))
        gamma, beta = torch.rand(2, outputs, generator=self.random)
        made_norm = {
            "weight": gamma + 0.5,
            "bias": beta - 0.5,
            "running_mean": mean,
            "running_var": var + 0.5 * var.mean(),
        }
        for key, value in {**made_norm, "num_batches_tracked": torch.tensor(7)}.items():
            state.setdefault(f"{norm}.{key}", value.float() if value.ndim else value)
        gamma, beta, mean, var = (state[f"{norm}.{key}"].double() for key in made_norm)
        slope = gamma / (var + self.eps).sqrt()
        self.folded.append(((weight * slope[:, None, None, None]).float(), (beta - mean * slope).float()))
        x = (x - mean[:, None, None]) * slope[:, None, None] + beta[:, None, None]
        return self.act(x) if act else x

    def last(self, x: Tensor, outputs: int, name: str) -> Tensor:
        """A 1 x 1 convolution with biases."""
        weight = torch.randn(outputs, x.shape[1], 1, 1, generator=self.random) * 0.1
        bias = torch.randn(outputs, generator=self.random)
        weight, bias = self.state.setdefault(f"{name}.weight", weight), self.state.setdefault(f"{name}.bias", bias)
        self.folded.append((weight, bias))
        return F.conv2d(x, weight.double(), bias.double())

    def rows(self, levels: list[Tensor]) -> Tensor:
        """(B, A, outputs), level by level, row by row."""
        return torch.cat([x.flatten(2) for x in levels], 2).transpose(1, 2)


class NanoDet(Net):
    """github.com/RangiLyu/nanodet, config/nanodet-plus-m_416.yml, in inference; pixels are BGR."""

    def __init__(self, widths: tuple[int, ...], channels: int, classes: int) -> None:
        super().__init__(lambda x: F.leaky_relu(x, 0.1), 1e-5)
        self.widths, self.channels, self.classes = widths, channels, classes

    def __call__(self, pixels: Tensor) -> Tensor:
        mean, std = (torch.tensor(v)[:, None, None] for v in ((103.53, 116.28, 123.675), (57.375, 57.12, 58.395)))
        x = self.conv((pixels.flip(1) - mean) / std, 24, 3, ("backbone.conv1.0", "backbone.conv1.1"), 2)
        x, maps = F.max_pool2d(x, 3, 2, 1), []
        for stage, (width, repeats) in enumerate(zip(self.widths, (4, 8, 4), strict=True), 2):
            for i in range(repeats):
                x = self.shuffled(x, width, f"backbone.stage{stage}.{i}", first=i == 0)
            maps.append(x)
        c = self.channels
        maps = [
            self.conv(x, c, 1, (f"fpn.reduce_layers.{i}.conv", f"fpn.reduce_layers.{i}.bn")) for i, x in enumerate(maps)
        ]
        coarsest = maps[2]
        for i, level in enumerate((1, 0)):
            above = F.interpolate(maps[level + 1], scale_factor=2, mode="bilinear")
            maps[level] = self.ghosts(torch.cat((above, maps[level]), 1), f"fpn.top_down_blocks.{i}.blocks.0")
        for i in (0, 1):
            below = self.separable(maps[i], f"fpn.downsamples.{i}", 2)
            maps[i + 1] = self.ghosts(torch.cat((below, maps[i + 1]), 1), f"fpn.bottom_up_blocks.{i}.blocks.0")
        extra = self.separable(coarsest, "fpn.extra_lvl_in_conv.0", 2)
        maps.append(extra + self.separable(maps[2], "fpn.extra_lvl_out_conv.0", 2))
        answers = []
        for i, x in enumerate(maps):
            for k in (0, 1):
                x = self.separable(x, f"head.cls_convs.{i}.{k}")
            answers.append(self.last(x, self.classes + 32, f"head.gfl_cls.{i}"))
        return self.rows(answers)

    def shuffled(self, x: Tensor, width: int, name: str, first: bool) -> Tensor:
        half, stride = width // 2, 2 if first else 1
        beside, through = (x, x) if first else x.chunk(2, 1)
        if first:
            beside = self.conv(x, x.shape[1], 3, self.at(name, "branch1", 0), 2, deep=True, act=False)
            beside = self.conv(beside, half, 1, self.at(name, "branch1", 2))
        through = self.conv(through, half, 1, self.at(name, "branch2", 0))
        through = self.conv(through, half, 3, self.at(name, "branch2", 3), stride, deep=True, act=False)
        through = self.conv(through, half, 1, self.at(name, "branch2", 5))
        return torch.cat((beside, through), 1).unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)

    @staticmethod
    def at(*parts: object) -> tuple[str, str]:
        *name, number = parts
        return f"{'.'.join(map(str, name))}.{number}", f"{'.'.join(map(str, name))}.{int(str(number)) + 1}"

    def separable(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        x = self.conv(x, x.shape[1], 5, (f"{name}.depthwise", f"{name}.dwnorm"), stride, deep=True)
        return self.conv(x, self.channels, 1, (f"{name}.pointwise", f"{name}.pwnorm"))

    def ghosts(self, x: Tensor, name: str) -> Tensor:
        y = x
        for which, act in (("ghost1", True), ("ghost2", False)):
            main = self.conv(y, self.channels // 2, 1, self.at(name, which, "primary_conv", 0), act=act)
            cheap = self.at(name, which, "cheap_operation", 0)
            y = torch.cat((main, self.conv(main, self.channels // 2, 3, cheap, deep=True, act=act)), 1)
        x = self.conv(x, x.shape[1], 5, self.at(name, "shortcut", 0), deep=True, act=False)
        return y + self.conv(x, self.channels, 1, self.at(name, "shortcut", 2), act=False)


class YOLOX(Net):
    """github.com/Megvii-BaseDetection/YOLOX, in inference; pixels are BGR."""

    def __init__(self, depth: float, width: float, depthwise: bool, classes: int) -> None:
        super().__init__(F.silu, 1e-3)
        self.depth, self.width, self.depthwise, self.classes = depth, width, depthwise, classes

    def __call__(self, pixels: Tensor) -> Tensor:
        x = pixels.flip(1)
        x = torch.cat((x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]), 1)
        c, repeats = int(64 * self.width), max(round(self.depth * 3), 1)
        x, maps = self.unit(x, c, 3, "backbone.backbone.stem.conv"), []
        for i, factor in ((2, 1), (3, 3), (4, 3), (5, 1)):
            name, c = f"backbone.backbone.dark{i}", 2 * c
            x = self.spatial(x, c, f"{name}.0", 2)
            if i == 5:
                x = self.unit(x, c // 2, 1, f"{name}.1.conv1")
                x = torch.cat((x, *(F.max_pool2d(x, k, 1, k // 2) for k in (5, 9, 13))), 1)
                x = self.unit(x, c, 1, f"{name}.1.conv2")
            x = self.csp(x, c, factor * repeats, f"{name}.{2 if i == 5 else 1}", add=i < 5)
            maps.append(x)
        fine, middle, coarse = maps[1:]
        c3, c4, c5 = (x.shape[1] for x in maps[1:])
        side5 = self.unit(coarse, c4, 1, "backbone.lateral_conv0")
        x = torch.cat((F.interpolate(side5, scale_factor=2), middle), 1)
        side4 = self.unit(self.csp(x, c4, repeats, "backbone.C3_p4"), c3, 1, "backbone.reduce_conv1")
        out3 = self.csp(torch.cat((F.interpolate(side4, scale_factor=2), fine), 1), c3, repeats, "backbone.C3_p3")
        x = torch.cat((self.spatial(out3, c3, "backbone.bu_conv2", 2), side4), 1)
        out4 = self.csp(x, c4, repeats, "backbone.C3_n3")
        x = torch.cat((self.spatial(out4, c4, "backbone.bu_conv1", 2), side5), 1)
        answers = []
        out5 = self.csp(x, c5, repeats, "backbone.C3_n4")
        for i, each in enumerate((out3, out4, out5)):
            x = stem = self.unit(each, int(256 * self.width), 1, f"head.stems.{i}")
            for k in (0, 1):
                x = self.spatial(x, x.shape[1], f"head.cls_convs.{i}.{k}")
            classes, x = self.last(x, self.classes, f"head.cls_preds.{i}"), stem
            for k in (0, 1):
                x = self.spatial(x, x.shape[1], f"head.reg_convs.{i}.{k}")
            boxes, there = self.last(x, 4, f"head.reg_preds.{i}"), self.last(x, 1, f"head.obj_preds.{i}")
            answers.append(torch.cat((classes, boxes, there), 1))
        return self.rows(answers)

    def unit(self, x: Tensor, outputs: int, kernel: int, name: str, stride: int = 1, deep: bool = False) -> Tensor:
        return self.conv(x, outputs, kernel, (f"{name}.conv", f"{name}.bn"), stride, deep)

    def spatial(self, x: Tensor, outputs: int, name: str, stride: int = 1) -> Tensor:
        if not self.depthwise:
            return self.unit(x, outputs, 3, name, stride)
        return self.unit(self.unit(x, x.shape[1], 3, f"{name}.dconv", stride, True), outputs, 1, f"{name}.pconv")

    def csp(self, x: Tensor, outputs: int, repeats: int, name: str, add: bool = False) -> Tensor:
        a, b = (self.unit(x, outputs // 2, 1, f"{name}.conv{k}") for k in (1, 2))
        for i in range(repeats):
            y = self.spatial(self.unit(a, outputs // 2, 1, f"{name}.m.{i}.conv1"), outputs // 2, f"{name}.m.{i}.conv2")
            a = y + a if add else y
        return self.unit(torch.cat((a, b), 1), outputs, 1, f"{name}.conv3")


NETS: dict[str, Callable[[], Any]] = {
    "nanodet-plus-m": lambda: NanoDet((116, 232, 464), 96, 80),
    "nanodet-plus-m-1.5x": lambda: NanoDet((176, 352, 704), 128, 3),
    "yolox-nano": lambda: YOLOX(0.33, 0.25, True, 80),
    "yolox-tiny": lambda: YOLOX(0.33, 0.375, False, 3),
    "yolox-m": lambda: YOLOX(0.67, 0.125, False, 3),  # of its depth, but narrow
}


def import_any(name: str, path: Path, names: Path | None, **more: Any) -> Detector:
    return (import_nanodet if name.startswith("nanodet") else import_yolox)(path, names, size=64, **more)


def answers(detector: Detector) -> Tensor:
    with torch.no_grad():
        raw = copy.deepcopy(detector).double().raw(PIXELS)  # sums of random layers differ in float32
    parts = [raw["classes"], raw["boxes"], *([raw["objectness"][..., None]] if "objectness" in raw else [])]
    return torch.cat(parts, -1)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Tensor, Path, Path | None]]:
    """Of each name the network, what it answers, its file and one of class names."""
    made: dict[str, tuple[Any, Tensor, Path, Path | None]] = {}

    def get(name: str) -> tuple[Any, Tensor, Path, Path | None]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            net = NETS[name]()
            net(PIXELS)
            net.folded.clear()
            wanted = net(PIXELS)  # no longer shaped by what it sees
            state = net.state
            if isinstance(net, NanoDet):  # as a trained one is: averaged weights, and what only training needs
                other = {f"model.{key}": value * 2 for key, value in state.items()}
                state = {f"avg_model.{key}": value for key, value in state.items()} | other
                state |= {"avg_model.aux_fpn.x": torch.ones(1), "avg_model.aux_head.y": torch.ones(1)}
                state["avg_model.head.distribution_project.project"] = torch.arange(8.0)
            torch.save({"epoch": 3, "state_dict" if isinstance(net, NanoDet) else "model": state}, folder / "net.pth")
            few = folder / "names.txt" if net.classes == 3 else None
            if few:
                few.write_text("ant\nbee\ncat\n")
            made[name] = net, wanted, folder / "net.pth", few
        return made[name]

    return get


@pytest.mark.parametrize("name", NETS)
def test_weights_by_name_answer_as_published(name: str, published: Any, tmp_path: Path) -> None:
    net, wanted, path, names = published(name)
    said: list[str] = []
    detector = import_any(name, path, names, images="photos", tell=said.append)
    assert "has BatchNorms of its own" in said[0]
    torch.testing.assert_close(answers(detector), wanted, atol=1e-8, rtol=0)
    if name != "yolox-m":
        assert detector.record["imported"] == f"{name}, net.pth"
    detector.save(tmp_path / "m.safetensors")
    again = load_detector(tmp_path / "m.safetensors")
    assert torch.equal(answers(again), answers(detector))
    stretched = isinstance(net, NanoDet)
    assert (again.iou, again.resize.mode) == ((0.6, "stretch") if stretched else (0.65, "letterbox"))
    assert (again.classes == COCO_CLASSES) == (net.classes == 80)
    boxes, scores = again.head.decoded(again.raw(PIXELS[:1].float()))
    levels = [(8, 8), (4, 16), (2, 32), *([(1, 64)] if stretched else [])]
    cells = [torch.tensor([[x, y, s] for y in range(n) for x in range(n)]) for n, s in levels]
    x, y, s = torch.cat(cells).T
    code = wanted[0, :, net.classes :]
    if stretched:  # distances to the four sides from a cell's upper left corner
        left, top, right, bottom = (code.view(-1, 4, 8).softmax(-1) @ torch.arange(8.0, dtype=torch.float64)).T
        by_hand = torch.stack((x - left, y - top, x + right, y + bottom), 1) * s[:, None]
        by_hand_scores = wanted[0, :, : net.classes].sigmoid()
    else:
        centre, size = code[:, :2] + torch.stack((x, y), 1), code[:, 2:4].exp()
        by_hand = torch.cat((centre - size / 2, centre + size / 2), 1) * s[:, None]
        by_hand_scores = wanted[0, :, : net.classes].sigmoid() * code[:, 4:].sigmoid()
    torch.testing.assert_close(boxes[0].double(), by_hand, atol=0.5, rtol=1e-3)
    torch.testing.assert_close(scores[0].double(), by_hand_scores, atol=2e-3, rtol=0)


def write_ncnn(path: Path, folded: list[tuple[Tensor, Tensor]], half: bool) -> None:
    lines, data = ["7767517", f"{len(folded) + 1} 2", "Input data 0 1 data"], b""
    for i, (filters, bias) in enumerate(folded):
        keys = f"0={len(filters)} 1={filters.shape[3]} 5=1 6={filters.numel()} -23310=1,1.000000e-01"
        kind = "ConvolutionDepthWise" if filters.shape[1] == 1 else "Convolution"
        lines += [f"{kind} c{i} 1 1 data out{i} {keys}{f' 7={len(filters)}' if filters.shape[1] == 1 else ''}"]
        if i % 7 == 0:
            lines += [f"Split s{i} 1 2 a b c"]
        values = filters.numpy().astype("<f2" if half else "<f4").tobytes()
        data += (0x01306B47 if half else 0).to_bytes(4, "little") + values + bytes(-len(values) % 4)
        data += bias.numpy().astype("<f4").tobytes()
    path.with_suffix(".param").write_text("\n".join(lines) + "\n")
    path.with_suffix(".bin").write_bytes(data)


def write_onnx(path: Path, folded: list[tuple[Tensor, Tensor]], extra: str = "", weights: bool = True) -> None:
    onnx = pytest.importorskip("onnx")
    tensors = {f"{500 + 2 * i + k}": t for i, pair in enumerate(folded) for k, t in enumerate(pair)}
    values = [onnx.numpy_helper.from_array(t.numpy(), name) for name, t in reversed(tensors.items())]
    words = list(tensors)
    nodes = [onnx.helper.make_node("Conv", ["x", *words[i : i + 2]], ["y"]) for i in range(0, len(words), 2)]
    nodes += [onnx.helper.make_node(extra, ["y"], ["z"])] if extra else []
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], values if weights else [])), str(path))


def deploy(name: str, folded: list[tuple[Tensor, Tensor]], folder: Path, half: bool = False) -> Path:
    path = folder / ("net.param" if name.startswith("nanodet") else "net.onnx")
    write_ncnn(path, folded, half) if path.suffix == ".param" else write_onnx(path, folded)
    return path


@pytest.mark.parametrize("name", ["nanodet-plus-m", "yolox-nano", "yolox-m"])
def test_deployed_files_answer_the_same_and_get_their_batch_norms_back(
    name: str, published: Any, tmp_path: Path
) -> None:
    net, wanted, _, names = published(name)
    said: list[str] = []
    path = deploy(name, net.folded, tmp_path)
    detector = import_any(name, path, names, tell=said.append)
    torch.testing.assert_close(answers(detector), wanted, atol=2e-3, rtol=0)
    assert "--images FOLDER" in said.pop()
    (tmp_path / "photos").mkdir()
    for i in range(6):
        write_image(tmp_path / "photos" / f"{i}.png", toy_sample(i, 64).image)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no photo")
    measured = import_any(name, path, names, images=tmp_path / "photos", tell=said.append)
    assert "statistics of 6 images (1 could not be read)" in said.pop()
    error = (answers(measured) - wanted).abs()  # of float32, through random layers
    assert (error.max() < 0.05, error.mean() < 1e-3) == (True, True), (error.max(), error.mean())
    # On those images the batch's own statistics are the measured ones.
    pixels = torch.from_numpy(np.stack([toy_sample(i, 64).image for i in range(6)])).permute(0, 3, 1, 2).float()
    norms = [m for m in measured.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_pre_hook(
            lambda norm, x: seen.append((norm, *torch.var_mean(x[0], (0, 2, 3), correction=0)))
        )
    seen: list[Any] = []
    with torch.no_grad():
        measured.raw(pixels)
    assert len(seen) == len(norms) > 90
    off = [
        (torch.cat((norm.running_mean - mean, norm.running_var.sqrt() - var.sqrt())) / var.sqrt().repeat(2)).abs()
        for norm, var, mean in seen
    ]
    assert torch.cat(off).quantile(0.99) < 1e-2


def test_half_precision_of_ncnn_is_read(published: Any, tmp_path: Path) -> None:
    net, _, _, names = published("nanodet-plus-m")
    detector = import_nanodet(deploy("nanodet", net.folded, tmp_path, half=True).with_suffix(".bin"), names, size=64)
    stem = detector.backbone.stages[0][0].weight
    assert torch.equal(stem, net.folded[0][0].half().float().flip(1))
    assert torch.equal(detector.head.layers[3].weight, net.folded[-1][0].half().float())


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        *(("nanodet-plus-m", 1.198), ("nanodet-plus-m-1.5x", 2.478), ("yolox-nano", 0.912), ("yolox-tiny", 5.056)),
        *(("yolox-s", 8.968), ("yolox-m", 25.326), ("yolox-l", 54.209), ("yolox-x", 99.071)),
    ],
)
def test_the_published_models_have_as_many_weights_as_published(name: str, millions: float) -> None:
    module = nanodet if name.startswith("nanodet") else yolox
    with torch.device("meta"):
        section = getattr(module, f"{module.__name__.rpartition(chr(46))[2]}_section")(*module.MODELS[name], 416)  # type: ignore[arg-type]
        detector = untrained_detector(section, COCO_CLASSES, range(80), name)
    assert round(sum(p.numel() for p in detector.parameters()) / 1e6, 3) == millions
    assert detector.resize.input_size == (416, 416)


def state(path: Path) -> tuple[str, dict[str, Any]]:
    whole = torch.load(path, weights_only=True)
    key = "state_dict" if "state_dict" in whole else "model"
    return key, whole[key]


def changed(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path, Path], None]:
    def write(source: Path, path: Path) -> None:
        key, tensors = state(source)
        torch.save({key: change(tensors)}, path)

    return write


@pytest.mark.parametrize("name", ["nanodet-plus-m", "yolox-nano"])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda source, path: None, "no such file"),
        (lambda source, path: path.write_bytes(source.read_bytes()[:9000]), "cannot be read"),
        (lambda source, path: torch.save({"model": Path("x")}, path), "more than tensors"),
        (lambda source, path: torch.save({"epoch": 3}, path), "no tensors by name"),
        (
            changed(lambda s: {"layer1.conv.weight": torch.zeros(3)}),
            "no checkpoint of NanoDet-Plus|no weights of YOLOX",
        ),
        (changed(lambda s: {k: v for k, v in s.items() if "_convs.0.1." not in k}), "it does not hold head.towers.0.1"),
        (
            changed(lambda s: {k: v[:1] if v.ndim and "_convs.2.0" in k else v for k, v in s.items()}),
            "shape",
        ),
        (changed(lambda s: {**s, "avg_model.fpn.more": torch.ones(1), "head.more": torch.ones(1)}), "also holds"),
        (changed(lambda s: {k: v * torch.nan if v.ndim else v for k, v in s.items()}), "not finite"),
    ],
)
def test_files_that_cannot_be_imported(name: str, make: Any, said: str, published: Any, tmp_path: Path) -> None:
    _, _, source, names = published(name)
    make(source, tmp_path / "net.pth")
    with pytest.raises(DetkitError, match=said) as caught:
        import_any(name, tmp_path / "net.pth", names)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("7767517", "7767518", "no ncnn graph"),
        ("Split s0 1 2 a b c", "InnerProduct f 1 1 a b 0=2", "weights of the layer InnerProduct"),
        (" 5=1 6=648", " 5=1 6=650", "are no 24 filters"),
        ("0=24 1=3 5=1 6=648", "0=24 1=3 5=1", "no convolution of ncnn"),
        ("0=24 1=3 5=1 6=648", "0=12 1=3 5=1 6=324", "is not read|are not read|layer"),
        ("Convolution c2 ", "Pooling c2 ", "not read|layer|follow"),
    ],
)
def test_ncnn_graphs_that_do_not_fit(old: str, new: str, said: str, published: Any, tmp_path: Path) -> None:
    path = deploy("nanodet", published("nanodet-plus-m")[0].folded, tmp_path)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DetkitError, match=said) as caught:
        import_nanodet(path)
    assert len(str(caught.value).splitlines()) == 3


def test_ncnn_weights_that_do_not_fit(published: Any, tmp_path: Path) -> None:
    folded = published("nanodet-plus-m")[0].folded
    path = deploy("nanodet", folded, tmp_path)
    data = path.with_suffix(".bin").read_bytes()
    for content, said in (
        (data[:-4], "the weights end before this layer"),
        (data + bytes(8), "8 bytes follow"),
        (bytes([0x38, 0x4B, 0x0D, 0]) + data[4:], "kind 0xd4b38 are not read"),
    ):
        path.with_suffix(".bin").write_bytes(content)
        with pytest.raises(DetkitError, match=said):
            import_nanodet(path)
    path.with_suffix(".bin").unlink()
    with pytest.raises(DetkitError, match="cannot be read"):
        import_nanodet(path)
    for fewer, said in ((folded[:2], "2 convolutions"), ([*folded[:40], *folded[41:]], "109 convolutions, not 110")):
        with pytest.raises(DetkitError, match=f"no file of NanoDet-Plus: {said}"):
            import_nanodet(deploy("nanodet", fewer, tmp_path))
    swapped = [*folded[:4], folded[5], folded[4], *folded[6:]]
    with pytest.raises(DetkitError, match=r"convolution 5 \(backbone.stages.2.0.branch2.3\) is"):
        import_nanodet(deploy("nanodet", swapped, tmp_path))


def test_onnx_files_that_do_not_fit(published: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folded, path = published("yolox-nano")[0].folded, tmp_path / "net.onnx"
    with pytest.raises(DetkitError, match="no such file"):
        import_yolox(path)
    write_onnx(path, folded, "BatchNormalization")
    with pytest.raises(DetkitError, match="BatchNorms apart"):
        import_yolox(path)
    for fewer, said in ((folded[1:], "focus layer"), ([*folded[:40], *folded[41:]], "none of its depths has")):
        write_onnx(path, fewer)
        with pytest.raises(DetkitError, match=said):
            import_yolox(path)
    write_onnx(path, folded, weights=False)
    with pytest.raises(DetkitError, match="not stored in it"):
        import_yolox(path)
    path.write_bytes(b"\x08\x07\x12 no model")
    with pytest.raises(DetkitError, match="the ONNX file cannot be used"):
        import_yolox(path)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(DetkitError, match=r"pip install 'detkit\[onnx\]'"):
        import_yolox(path)


def test_the_verbs(published: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, verb in (("nanodet-plus-m-1.5x", "nanodet"), ("yolox-tiny", "yolox")):
        _, _, path, names = published(name)
        out = tmp_path / f"{verb}.safetensors"
        words = ["import", verb, str(path), "--names", str(names), "--size", "64", "-o", str(out)]
        assert main([*words, "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["size"], report["bytes"], report["classes"]) == (
            [64, 64],
            out.stat().st_size,
            ["ant", "bee", "cat"],
        )
        assert main(words) == 2
        assert "exists" in capsys.readouterr().err
        assert main(["import", verb, str(path), "-o", str(tmp_path / "x.safetensors")]) == 2
        assert "3 classes need names" in capsys.readouterr().err
