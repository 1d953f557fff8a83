"""Counts that every student knows: the textbook's worked examples and the papers' own figures."""

from __future__ import annotations

import importlib
import json

import pytest
import torch
from torch import nn

from detkit.backbones import BACKBONES
from detkit.cli import main
from detkit.config.build import build_detector
from detkit.config.experiment import read_config
from detkit.engine.options import TrainOptions
from detkit.errors import DetkitError
from detkit.explain.describe import describe_model
from detkit.explain.summary import Summary, summarise_backbone, summarise_config, summarise_detector, summarise_network
from detkit.interfaces import ProposalSource


def classifier(name: str, num_classes: int = 0, size: int | None = None, **keys) -> Summary:
    module, attribute = BACKBONES[name].split(":")
    with torch.device("meta"):
        net = getattr(importlib.import_module(module), attribute)(num_classes, **keys).eval()
    return summarise_network(net, (size or net.backbone.size,) * 2)


def of(*layers: nn.Module, channels: int = 3, size: int = 28) -> Summary:
    """The layers behind a 1 x 1 convolution that makes ``channels`` of the image's three; its own row is left out."""
    first = [] if channels == 3 else [nn.Conv2d(3, channels, 1)]
    summary = summarise_network(nn.Sequential(*first, *layers).to("meta"), (size, size))
    return Summary(summary.input, summary.layers[len(first) :], summary.total)


def test_the_lenet_of_textbooks():
    summary = summarise_backbone("lenet_textbook")
    sizes = [torch.Size(layer.output).numel() for layer in summary.layers]
    assert [torch.Size(summary.input).numel(), *sizes] == [3072, 6272, 1568, 1600, 400, 120, 84, 10]
    assert [layer.parameters for layer in summary.layers] == [608, 0, 3216, 0, 48120, 10164, 850]
    assert summary.total["parameters"] == 62_958
    assert [layer.output for layer in summary.layers[:2]] == [(28, 28, 8), (14, 14, 8)]


def test_lenet5_of_1998_and_of_today():
    old, new = summarise_backbone("lenet5_1998"), summarise_backbone("lenet5")
    assert old.total["parameters"] == 60_000
    assert new.total["parameters"] == 61_706
    assert [layer.parameters for layer in old.layers if layer.kind == "SparseConv2d"] == [1516]
    assert 2416 in [layer.parameters for layer in new.layers]
    c5 = next(layer for layer in old.layers if layer.output == (1, 1, 120))
    assert c5.kind == "Conv2d 5x5"
    assert c5.receptive_field == 32


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("alexnet", 61_100_840),
        ("alexnet_2012", 60_965_224),
        ("vgg11", 132_863_336),
        ("vgg11_bn", 132_868_840),
        ("vgg13", 133_047_848),
        ("vgg13_bn", 133_053_736),
        ("vgg16", 138_357_544),
        ("vgg16_bn", 138_365_992),
        ("vgg19", 143_667_240),
        ("vgg19_bn", 143_678_248),
        ("nin", 7_595_176),
        ("nin_cifar", 966_986),
        ("googlenet", 6_624_904),
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("densenet121", 7_978_856),
        ("densenet169", 14_149_480),
        ("densenet201", 20_013_928),
        ("mobilenet_v2", 3_504_872),
        ("mobilenet_v3_small", 2_542_856),
        ("mobilenet_v3_large", 5_483_032),
        ("shufflenet_v2_x1_0", 2_278_604),
        ("efficientnet_lite0", 4_652_008),
        ("efficientnet_lite1", 5_416_680),
        ("efficientnet_lite2", 6_092_072),
    ],
)
def test_published_parameters(name, parameters):
    assert summarise_backbone(name).total["parameters"] == parameters


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("vgg11", 11),
        ("vgg13", 13),
        ("vgg16", 16),
        ("vgg19", 19),
        ("alexnet", 8),
        ("googlenet", 22),
        ("resnet18", 18),
        ("resnet50", 50),
        ("densenet121", 121),
    ],
)
def test_layers_are_counted_as_the_names_count_them(name, depth):
    # Layers with weights on the longest path; a ResNet's projections stand beside it.
    assert summarise_backbone(name).total["depth"] == depth


def test_vgg_doubles_its_channels_and_halves_its_maps():
    layers = [layer for layer in summarise_backbone("vgg16").layers if layer.kind.startswith("MaxPool2d")]
    assert [layer.output for layer in layers] == [
        (112, 112, 64), (56, 56, 128), (28, 28, 256), (14, 14, 512), (7, 7, 512)
    ]  # fmt: skip
    assert summarise_backbone("vgg16").total["layers"] == 16


def test_multiply_adds_are_those_of_torchvisions_tables():
    # In 10^9, from its documentation.
    for name, giga in {"resnet50": 4.089, "googlenet": 1.498, "densenet121": 2.834, "alexnet": 0.714}.items():
        assert summarise_backbone(name).total["multiply_adds"] / 1e9 == pytest.approx(giga, abs=6e-4)


def test_fully_connected_against_convolution():
    flat, conv = of(nn.Flatten(), nn.Linear(3072, 28 * 28 * 6, bias=False), size=32), of(nn.Conv2d(3, 6, 5), size=32)
    assert flat.total["parameters"] == 14_450_688
    assert conv.total["parameters"] == 456
    assert conv.layers[0].output == (28, 28, 6)
    with torch.device("meta"):  # it would take 12 GB
        huge = nn.Linear(3_000_000, 1000, bias=False)
    assert of(nn.Flatten(), huge, size=1000).total["parameters"] == 3_000_000_000
    assert of(nn.Conv2d(3, 10, 3), size=32).total["parameters"] == 280
    assert of(nn.Conv2d(3, 2, 3, bias=False), size=6).layers[0].multiply_adds == 4 * 4 * 2 * 27


def test_depthwise_and_pooling():
    assert of(nn.Conv2d(32, 32, 3, groups=32, bias=False), channels=32).layers[0].parameters == 288
    pool = of(nn.MaxPool2d(2), channels=8).layers[0]
    assert (pool.output, pool.parameters, pool.multiply_adds) == ((14, 14, 8), 0, 0)


def test_inception_with_and_without_a_bottleneck():
    wide = of(nn.Conv2d(192, 32, 5, padding=2, bias=False), channels=192)
    narrow = of(nn.Conv2d(192, 16, 1, bias=False), nn.Conv2d(16, 32, 5, padding=2, bias=False), channels=192)
    assert wide.layers[0].multiply_adds == 120_422_400
    assert [layer.multiply_adds for layer in narrow.layers] == [2_408_448, 10_035_200]
    assert sum(layer.multiply_adds for layer in narrow.layers) == 12_443_648


def test_the_papers_inception_and_torchvisions():
    # 3a of 28 x 28 x 192: 64 + 128 + 32 + 32 channels.
    counts = {}
    for kernel in (3, 5):
        layers = classifier("googlenet", 10, 224, kernel=kernel).layers
        third = [layer for layer in layers if "stages.2.1.branch3" in layer.name and layer.multiply_adds]
        assert [layer.output for layer in third] == [(28, 28, 16), (28, 28, 32)]
        counts[kernel] = [layer.multiply_adds for layer in third]
        assert (
            sum(
                layer.output[-1]
                for layer in layers
                if layer.name.startswith("backbone.stages.2.1.")
                and layer.name.endswith(("branch1.conv", "2.1.conv", "3.1.conv", "4.1.conv"))
            )
            == 256
        )
    assert counts[5] == [2_408_448, 10_035_200]
    assert counts[3] == [2_408_448, 10_035_200 * 9 // 25]


def test_receptive_fields():
    def field(*convs: nn.Module) -> float:
        return of(*convs, size=64).layers[-1].receptive_field

    three = nn.Conv2d(3, 3, 3, bias=False)
    assert (field(three, three), field(three, three, three)) == (5, 7)
    assert sum(p.numel() for _ in range(2) for p in three.parameters()) == 18 * 9
    assert field(nn.Conv2d(3, 3, 3, dilation=2)) == 5
    assert field(three, nn.Conv2d(3, 3, 3, dilation=2), nn.Conv2d(3, 3, 3, dilation=4)) == 15
    assert field(nn.Conv2d(3, 3, 3, stride=2), three) == 7
    assert field(nn.MaxPool2d(2), three) == 6
    assert field(three, nn.AdaptiveAvgPool2d(1)) == 64
    assert field(three, nn.Flatten(), nn.Linear(3 * 62 * 62, 5)) == 64


def test_a_layer_called_twice_has_its_parameters_once():
    conv = nn.Conv2d(3, 3, 3, bias=False)
    summary = of(conv, conv, size=16)
    assert [layer.parameters for layer in summary.layers] == [81, 0]
    assert summary.total["parameters"] == 81


def test_a_whole_detector_needs_no_data():
    summary = summarise_config("toy", num_classes=3)
    assert any(layer.name.startswith("head.layers.0") for layer in summary.layers)
    assert summary.input == (128, 128, 3)
    assert summarise_config("toy", (64, 96)).input == (64, 96, 3)
    with pytest.raises(DetkitError, match="does not take"):
        summarise_backbone("lenet5", (16, 16))


def test_info_prints_a_table_or_json(capsys):
    assert main(["info", "lenet_textbook", "--input", "32x32x3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["input", "32x32x3", "3,072", "1", "1"]
    assert "62,958 parameters" in lines[-2]
    assert main(["info", "resnet18", "--num-classes", "7", "--input", "64x64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["layers"][-1]["output"] == [7]
    assert found["layers"][0].keys() >= {"name", "output", "parameters", "multiply_adds", "receptive_field", "stride"}
    assert found["total"]["parameters"] == sum(layer["parameters"] for layer in found["layers"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["reset50"], "did you mean resnet50?"),
        (["no.yaml"], "no.yaml"),
        (["resnet18", "--input", "32"], "224x224x3"),
        (["resnet18", "--input", "32x32x1"], "224x224x3"),
        (["resnet18", "--input", "0x32x3"], "224x224x3"),
        (["resnet18", "--input", "-1x32x3"], "224x224x3"),
        (["lenet5", "--input", "20x20x3"], "larger"),
        (["resnet18", "--num-classes", "0"], "--num-classes"),
        (["default", "--num-classes", "3"], "--num-classes"),
        (["resnet18", "--size", "32"], "--size"),
        ([], "FILE|NAME"),
    ],
)
def test_wrong_words_for_info(capsys, words, said):
    assert main(["info", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_source_of_proposals_without_a_limit_needs_none():
    class Whole(ProposalSource):
        pass

    detector = build_detector(read_config("fast_rcnn", train_schema=TrainOptions), ["a"])
    detector.proposals = Whole()
    total = summarise_detector(detector).total
    assert total["regions"] == 0
    assert total["region_multiply_adds"] > 0


def test_a_model_is_described_by_name():
    of_file = describe_model("default")
    assert len(of_file.to_dict()["classes"]) == 80
    assert any(line.startswith("resize") for line in of_file.lines())
    of_layers = describe_model("default", layers=True, size=(64, 64))
    assert of_layers.to_dict()["input"] == (64, 64, 3)
    assert of_file.facts.items() <= of_layers.facts.items()
    assert describe_model("lenet5").lines()[-1].startswith("5 layers with weights")
    with pytest.raises(DetkitError, match="no such model file"):
        describe_model("nowhere.safetensors")


def test_regions_are_counted_as_often_as_a_image_has_them():
    total = summarise_config("fast_rcnn", num_classes=3).total
    assert total["regions"] == 500
    # Two fully connected layers of 512 on 7 x 7 x 128, then four scores and three boxes.
    each = 7 * 7 * 128 * 512 + 512 * 512 + 512 * (4 + 3 * 4)
    assert total["region_multiply_adds"] == each
    assert total["multiply_adds"] > 500 * each
    assert summarise_config("fast_rcnn", num_classes=4).total["multiply_adds"] - total["multiply_adds"] == 500 * 512 * 5
