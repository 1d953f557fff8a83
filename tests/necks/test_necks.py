"""Every neck of the table, by the same contract."""

from __future__ import annotations

import importlib

import pytest
import torch

from detkit.necks import NECKS
from detkit.necks.fpn import FPN
from detkit.necks.ghost_pan import Ghost, GhostPAN
from detkit.necks.pafpn import PAFPN


def make(name: str, channels, strides, **keys):
    module, attribute = NECKS[name].split(":")
    return getattr(importlib.import_module(module), attribute)(channels, strides, **keys)


def maps(channels, strides, size=64):
    return [torch.rand(2, c, size // s, size // s, requires_grad=True) for c, s in zip(channels, strides, strict=True)]


@pytest.mark.parametrize("name", NECKS)
@pytest.mark.parametrize(("channels", "strides"), [([8], [16]), ([4, 8, 16], [8, 16, 32]), ([4, 16], [4, 32])])
def test_maps_in_maps_out(name, channels, strides):
    neck = make(name, channels, strides)
    features = maps(channels, strides)
    outputs = neck(features)
    assert [o.shape[1] for o in outputs] == neck.channels
    assert [64 // o.shape[2] for o in outputs] == neck.strides
    sum(o.square().mean() for o in outputs).backward()
    assert all(p.grad is not None for p in neck.parameters())
    assert all(f.grad is not None for f in features)


@pytest.mark.parametrize("depthwise", [True, False])
@pytest.mark.parametrize("strides", [[8, 16, 32], [4, 32]])
def test_bottom_up_tells_the_coarse_map_what_the_fine_one_saw(strides, depthwise):
    neck = FPN([4] * len(strides), strides, out=16, kernel=3, depthwise=depthwise, bottom_up=True).eval()
    features = [m.detach() for m in maps([4] * len(strides), strides)]
    same = neck(features)
    changed = neck([features[0] + 1, *features[1:]])
    assert [o.shape for o in same] == [(2, 16, 64 // s, 64 // s) for s in strides]
    assert not any(torch.allclose(a, b) for a, b in zip(changed, same, strict=True))


def test_fpn_tells_the_fine_map_what_the_coarse_one_saw():
    neck = FPN([4, 8], [8, 16], out=16).eval()
    fine, coarse = (m.detach() for m in maps([4, 8], [8, 16]))
    changed = neck([fine, coarse + 1])
    same = neck([fine, coarse])
    assert not torch.allclose(changed[0], same[0])
    assert torch.equal(neck([fine + 1, coarse])[1], same[1])  # nothing flows from fine to coarse


def test_fpn_keeps_odd_sizes_and_its_input():
    neck = FPN([4, 8], [8, 16], out=16, depthwise=False, kernel=3).eval()
    features = [torch.rand(1, 4, 7, 9), torch.rand(1, 8, 4, 5)]
    before = [f.clone() for f in features]
    assert [o.shape[-2:] for o in neck(features)] == [(7, 9), (4, 5)]
    assert all(torch.equal(a, b) for a, b in zip(features, before, strict=True))


def test_depthwise_smoothing_is_the_light_one():
    light, full = (sum(p.numel() for p in FPN([8], [8], out=32, depthwise=d).parameters()) for d in (True, False))
    assert light < full / 5


def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match="kernel"):
        FPN([8], [8], kernel=4)


def test_a_second_way_needs_whole_steps() -> None:
    with pytest.raises(ValueError, match="bottom_up"):
        FPN([8, 8], [16, 22.5], out=8, bottom_up=True)  # type: ignore[list-item]
    assert FPN([8, 8], [16, 22.5], out=8).strides == [16, 22.5]  # type: ignore[list-item]


def test_plain_is_the_papers_and_torchvisions_pyramid():
    from torchvision.ops import FeaturePyramidNetwork
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

    channels, strides = [4, 8, 16], [8, 16, 32]
    theirs = FeaturePyramidNetwork(channels, 6, LastLevelMaxPool())
    neck = FPN(channels, strides, out=6, kernel=3, depthwise=False, plain=True, extra=True)
    assert (neck.channels, neck.strides) == ([6] * 4, [8, 16, 32, 64])
    for ours, blocks in ((neck.lateral, theirs.inner_blocks), (neck.smooth, theirs.layer_blocks)):
        for mine, block in zip(ours, blocks, strict=True):
            mine.load_state_dict(block.state_dict())
    features = [m.detach() for m in maps(channels, strides, 96)]  # 3 cells at stride 32: the extra level has 2
    wanted = theirs({str(i): f for i, f in enumerate(features)}).values()
    for ours, one in zip(neck(features), wanted, strict=True):
        torch.testing.assert_close(ours, one)
    with pytest.raises(ValueError, match="plain goes with"):
        FPN(channels, strides, plain=True)


def test_a_ghost_is_a_1x1_and_a_depthwise_3x3_of_that():
    for act, primary, cheap in ((True, [-0.1] * 3, [-0.04, -0.06, -0.09]), (False, [-1.0] * 3, [-4, -6, -9])):
        ghost = Ghost(2, 2, act).eval()
        for weight in ghost.parameters():
            torch.nn.init.ones_(weight) if weight.ndim == 4 else None
        with torch.no_grad():
            found = ghost(torch.full((1, 2, 3, 3), -0.5))[0]
        corner_edge_middle = found[:, [0, 0, 1], [0, 1, 1]]
        torch.testing.assert_close(corner_edge_middle, torch.tensor([primary, cheap]), atol=1e-3, rtol=0)


def test_ghost_pans_extra_level_rounds_up_and_reads_the_coarsest_map_in_both_states():
    neck = GhostPAN([4, 8, 8], [8, 16, 32], out=8).eval()
    features = [torch.rand(1, c, n, n) for c, n in ((4, 20), (8, 10), (8, 5))]
    with torch.no_grad():
        outputs = neck(features)
        changed = neck([features[0] + 1, *features[1:]])
        assert [o.shape[-1] for o in outputs] == [20, 10, 5, 3]
        assert not torch.allclose(outputs[3], changed[3])
        torch.nn.init.zeros_(neck.extra_out[-2].weight)  # without the state after both ways
        only = neck(features)[3]
        assert torch.equal(only, neck([features[0] + 1, *features[1:]])[3])
        assert not torch.allclose(only, neck([*features[:2], features[2] + 1])[3])
    assert neck.divisor == 32  # no padding for the extra level's sake


@pytest.mark.parametrize(
    ("make_it", "words"),
    [
        (lambda: GhostPAN([4], [8], kernel=4), "kernel must be odd"),
        (lambda: GhostPAN([4], [8], out=7), "out even"),
        (lambda: GhostPAN([4, 4], [16, 24]), "ghost_pan needs"),
        (lambda: PAFPN([4, 4], [16, 24]), "pafpn needs"),
    ],
)
def test_necks_refuse_what_they_cannot_do(make_it, words):
    with pytest.raises(ValueError, match=words):
        make_it()


@pytest.mark.parametrize("depthwise", [True, False])
def test_pafpn_tells_every_map_of_every_other(depthwise):
    neck = PAFPN([4, 8, 16], [8, 16, 32], depthwise=depthwise).eval()
    features = [m.detach() for m in maps([4, 8, 16], [8, 16, 32])]
    with torch.no_grad():
        same = neck(features)
        for level in range(3):
            changed = neck([f + (i == level) for i, f in enumerate(features)])
            assert not any(torch.allclose(a, b) for a, b in zip(changed, same, strict=True))
    assert len(PAFPN([4, 8], [8, 16], depth=1.33).down[0].m) == 4
