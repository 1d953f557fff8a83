"""Darknet's graphs: single layers by hand, the chain of stages, the classic nets and their weights."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from detkit.backbones.base import StagedBackbone
from detkit.errors import DetkitError
from detkit.importers.darknet_backbone import darknet, darknet19, darknet53
from detkit.importers.darknet_files import read_cfg, read_lines, to_lines
from detkit.importers.darknet_graph import Reorg, Route, Scale, Shortcut, max_pool, plan

GRAPH = [
    "convolutional filters=8 size=3 stride=2 pad=1 batch_normalize=1 activation=leaky",
    "convolutional filters=8 size=3 stride=2 pad=1 batch_normalize=1 activation=mish",
    "convolutional filters=12 size=3 stride=2 pad=1 activation=relu",
    "convolutional filters=8 size=1 stride=1 activation=linear",
    "upsample stride=2",
    "route layers=-1,1",
]


def test_a_pool_of_size_2_and_stride_1_pads_right_and_bottom_only() -> None:
    x = -torch.arange(1.0, 10).reshape(1, 1, 3, 3)
    assert max_pool(2, 1, 1)(x)[0, 0].tolist() == [[-1, -2, -3], [-4, -5, -6], [-7, -8, -9]]
    assert max_pool(3, 1, 2)(x)[0, 0].tolist() == [[-1, -1, -2], [-1, -1, -2], [-4, -4, -5]]


@pytest.mark.parametrize(("size", "stride"), [(2, 2), (2, 1), (3, 2), (4, 2), (5, 1), (4, 3)])
@pytest.mark.parametrize("side", [8, 9])
def test_pools_are_darknets(size: int, stride: int, side: int) -> None:
    x = np.random.RandomState(0).randn(side, side + 2).astype(np.float32)
    padding = size - 1
    wanted = np.full(tuple((n + padding - size) // stride + 1 for n in x.shape), -np.inf, np.float32)
    for i, j in np.ndindex(*wanted.shape):
        for m, n in np.ndindex(size, size):
            row, column = i * stride + m - padding // 2, j * stride + n - padding // 2
            if 0 <= row < x.shape[0] and 0 <= column < x.shape[1]:
                wanted[i, j] = max(wanted[i, j], x[row, column])
    assert np.array_equal(max_pool(size, stride, padding)(torch.from_numpy(x)[None, None])[0, 0].numpy(), wanted)


def test_reorg_has_darknets_own_order() -> None:
    """Cell by cell as Darknet's loop does it: indices of a map of a quarter of the channels and twice the sides."""
    c, h, w, s = 8, 4, 6, 2
    x = np.arange(c * h * w, dtype=np.float32)
    wanted = np.empty_like(x)
    for k, j, i in np.ndindex(c, h, w):
        part, offset = k % (c // s**2), k // (c // s**2)
        column, row = i * s + offset % s, j * s + offset // s
        wanted[i + w * (j + h * k)] = x[column + w * s * (row + h * s * part)]
    got = Reorg(s)(torch.from_numpy(x).reshape(1, c, h, w).to(memory_format=torch.channels_last))
    assert got.shape == (1, c * s * s, h // s, w // s)
    assert np.array_equal(got.flatten().numpy(), wanted)


def test_a_route_takes_its_group_of_every_input() -> None:
    a, b = torch.arange(4.0).reshape(1, 4, 1, 1), torch.arange(4.0, 8).reshape(1, 4, 1, 1)
    assert Route(2, 1)(a, b).flatten().tolist() == [2, 3, 6, 7]
    assert torch.equal(Route(1, 0)(a), a)


def test_a_shortcut_of_unlike_channels_adds_what_the_first_input_has() -> None:
    x, wide, narrow = (torch.full((1, c, 1, 1), v) for c, v in ((2, 1.0), (3, 10.0), (1, 100.0)))
    assert Shortcut([2, 3, 1], "linear")(x, wide, narrow).flatten().tolist() == [111, 11]


def test_a_scale_is_a_number_per_channel_or_per_value() -> None:
    x = torch.tensor([[1.0, -2], [3, 4]]).reshape(1, 2, 1, 2)
    assert Scale("linear")(torch.tensor([2.0, 10]).reshape(1, 2, 1, 1), x).flatten().tolist() == [2, -4, 30, 40]
    assert Scale("relu")(x, x - 1).flatten().tolist() == [0, 6, 6, 12]


def test_squeeze_and_excitation_starts_no_stage() -> None:
    squeeze = ["avgpool", "convolutional filters=12 activation=logistic", "scale_channels from=2"]
    layers = plan(read_lines([*GRAPH[:3], *squeeze]))
    assert [layer.stride for layer in layers] == [2, 4, 8, 0, 0, 8]
    assert layers[-1].channels == 12
    net = darknet(graph=[*GRAPH[:3], *squeeze], outputs=(5,))
    assert [list(stage) for stage in net.stages] == [["0"], ["1"], ["2", "3", "4", "5"]]
    assert net(torch.rand(2, 3, 32, 64))[0].shape == (2, 12, 4, 8)


def test_lines_and_sections_say_the_same() -> None:
    assert to_lines(read_lines(GRAPH)) == GRAPH
    cfg = "[net]\nwidth=64\n\n" + "\n# a comment\n".join(
        f"[{kind}]\n" + "\n".join(w) for kind, *w in map(str.split, GRAPH)
    )
    assert to_lines(read_cfg(cfg, "x.cfg")[1:]) == GRAPH


def test_stages_begin_where_the_stride_grows_and_where_the_neck_begins() -> None:
    net = darknet(graph=GRAPH, outputs=(5, 2))
    assert isinstance(net, StagedBackbone)
    assert [list(stage) for stage in net.stages] == [["0"], ["1"], ["2", "3"], ["4", "5"]]
    assert (net.channels, net.strides, net.offsets) == ([16, 12], [4, 8], [2, 4])
    assert [tuple(o.shape) for o in net(torch.rand(1, 3, 32, 64))] == [(1, 16, 8, 16), (1, 12, 4, 8)]
    assert net.mean == (0, 0, 0)
    assert net.std == (255, 255, 255)


@torch.no_grad()
@pytest.mark.parametrize(("frozen", "outputs", "kept"), [(2, (5,), 1), (3, (5,), 2), (3, (2, 5), 3), (4, (5, 2), 2)])
def test_the_frozen_part_and_the_rest_are_the_whole(frozen: int, outputs: tuple[int, ...], kept: int) -> None:
    net = darknet(graph=GRAPH, outputs=outputs, frozen=frozen).eval()
    x = torch.rand(1, 3, 32, 32)
    maps = net.frozen_maps(x)
    assert len(maps) == kept
    assert all(torch.equal(a, b) for a, b in zip(net(x), net.from_frozen(maps), strict=True))


def test_frozen_stages_keep_still() -> None:
    net = darknet(graph=GRAPH, outputs=(5,), frozen=2).train()
    net(torch.rand(2, 3, 32, 32))[0].sum().backward()
    assert [p.grad is None for stage in net.stages for p in stage.parameters()] == [True] * 6 + [False] * 4
    assert not net.stages[1].training


@pytest.mark.parametrize(
    ("line", "needle"),
    [
        ("local filters=3", "layer local is not supported"),
        ("convolutional filters=8 size=3 activation=elu", "activation elu"),
        ("convolutional filters=8.5", "filters must be a whole number"),
        ("convolutional filters=inf", "filters must be a whole number"),
        ("convolutional filters=nan", "filters must be a whole number"),
        ("convolutional filters=many", "filters must be a number"),
        ("convolutional filters=99999999 size=3", "more than any network's"),
        ("convolutional filters=8 size=0", "at least 1"),
        ("convolutional filters=9 groups=2", "2 groups do not divide"),
        ("convolutional filters=8 dilation=2", "dilation=2"),
        ("convolutional filters=8 size=9999", "nothing is left"),
        ("route", "layers is missing"),
        ("route layers=-9", "does not come before it"),
        ("route layers=7", "does not come before it"),
        ("route layers=a", "separated by commas"),
        ("route layers=inf", "separated by commas"),
        ("route layers=0,1", "differ in width and height"),
        ("route layers=1 groups=3", "group 0 of 3"),
        ("route layers=1 groups=2 group_id=2", "group 2 of 2"),
        ("scale_channels from=-3", "does not fit"),
        ("scale_channels", "from is missing"),
        ("sam from=2", "does not fit"),
        ("shortcut from=2", "differ in width"),
        ("shortcut from=-1 weights_type=per_feature", "weights_type"),
        ("reorg stride=3", "cannot be regrouped"),
        ("reorg stride=2 reverse=1", "reverse=1"),
        ("maxpool size=2 stride", "not a layer"),
        ("", "not a layer"),
    ],
)
def test_mistakes_name_line_and_layer(line: str, needle: str) -> None:
    with pytest.raises(DetkitError, match=needle) as caught:
        plan(read_lines([*GRAPH, line]))
    assert "line 7" in caught.value.where
    assert "layer 6" in caught.value.where


@pytest.mark.parametrize(
    ("text", "needle", "place"),
    [
        ("", "begins with", "x.cfg"),
        ("[convolutional]\n", "begins with", "x.cfg"),
        ("width=3\n[net]\n", "no line of a Darknet cfg", "line 1"),
        ("[net]\n; fine\nwidth 3\n", "no line of a Darknet cfg", "line 3"),
    ],
)
def test_what_is_no_cfg(text: str, needle: str, place: str) -> None:
    with pytest.raises(DetkitError, match=needle) as caught:
        read_cfg(text, "x.cfg")
    assert place in caught.value.where


@pytest.mark.parametrize("keys", [{"outputs": (6,)}, {"outputs": (-1,)}, {"taps": (9,)}, {"taps": ()}])
def test_outputs_outside_the_graph(keys: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=next(iter(keys))):
        darknet(graph=GRAPH, **keys)  # type: ignore[arg-type]


def test_cells_that_do_not_tile_the_image_give_no_boxes() -> None:
    with pytest.raises(DetkitError, match="do not tile"):
        darknet(graph=["convolutional filters=4 size=3 stride=2"], outputs=(0,))


def test_sizes_of_the_classics() -> None:
    """The lengths of Darknet's published darknet19_448.conv.23 and darknet53.conv.74, after headers of 16 and 20."""
    with torch.device("meta"):
        nets = {"darknet19": darknet19(taps=(4,)), "darknet53": darknet53(taps=(4,))}
        counts = {name: sum(p.numel() for p in make(1000).parameters()) for name, make in
                  (("darknet19", darknet19), ("darknet53", darknet53))}  # fmt: skip
    held = {
        name: sum(v.numel() for key, v in net.state_dict().items() if "num_batches" not in key)
        for name, net in nets.items()
    }
    assert held == {"darknet19": (79327120 - 16) // 4, "darknet53": (162482580 - 20) // 4}
    assert counts == {"darknet19": 20_842_376, "darknet53": 41_609_928}


def test_a_classic_begins_with_a_darknet_file(tmp_path: Path) -> None:
    path = tmp_path / "darknet19.conv.23"
    values = (np.arange(25_000_000) % 97 / 9700).astype("<f4")
    path.write_bytes(struct.pack("<4i", 0, 1, 0, 5) + values.tobytes())
    short = tmp_path / "short"
    short.write_bytes(path.read_bytes()[: 16 + 400])
    with pytest.raises(DetkitError, match=r"numbers expected, 100 found"):
        darknet19(weights=str(short))
    first = darknet19(weights=str(path)).stages[0]["0"]
    assert torch.equal(first.norm.bias, torch.from_numpy(values[:32].copy()))
    assert torch.equal(first.conv.weight.flatten(), torch.from_numpy(values[128 : 128 + 864].copy()))
    with pytest.raises(DetkitError, match="not fetched"):
        darknet53(weights="imagenet")
