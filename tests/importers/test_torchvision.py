"""torchvision's Faster R-CNN as a detector: the same boxes and scores, from new files and old ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from detkit.cli import main
from detkit.config.build import load_detector
from detkit.data.names import COCO_CLASSES
from detkit.data.toy import toy_sample
from detkit.errors import DetkitError
from detkit.importers import torchvision as importer
from detkit.importers.torchvision import import_torchvision
from detkit.ops.boxes import iou
from detkit.structures import Limits, Sample

SIZE = (128, 192)
IMAGE = np.concatenate((toy_sample(0, 128).image, toy_sample(1, 128).image[:, :64]), axis=1)
PIXELS = torch.from_numpy(IMAGE).permute(2, 0, 1) / 255


def spread_to(deviation: float) -> Callable[[Any, Any, Tensor], Tensor]:
    """A hook that changes a layer so that its first outputs have a mean of 0 and this standard deviation."""
    done: list[bool] = []

    def hook(layer: Any, given: Any, output: Tensor) -> Tensor:
        if not done:
            done.append(True)
            mean = output.transpose(0, 1).flatten(1).mean(1)
            factor = deviation / (output.transpose(1, -1) - mean).std()
            layer.weight.mul_(factor)
            layer.bias.sub_(mean).mul_(factor)
            output = layer.forward(given[0])
        return output

    return hook


@pytest.fixture(scope="module")
def theirs() -> Any:
    """With random weights of a spread like a trained network's, so that boxes move and scores differ."""
    torch.manual_seed(0)
    net: Any = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=5, min_size=SIZE[0], max_size=SIZE[1]
    )
    norms = [layer for layer in net.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for layer in norms:
        layer.momentum = 1.0
        torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
        torch.nn.init.normal_(layer.bias, std=0.2)
    head, boxes = net.rpn.head, net.roi_heads.box_predictor
    with torch.no_grad():
        net.backbone(net.transform([PIXELS])[0].tensors)  # its statistics
        for layer in norms:
            layer.running_var.add_(layer.running_var.mean())  # no channel multiplies rounding errors
        net.eval()
        spreads = {head.cls_logits: 2.0, head.bbox_pred: 0.3, boxes.cls_score: 2.0, boxes.bbox_pred: 2.0}
        hooks = {layer: layer.register_forward_hook(spread_to(spread)) for layer, spread in spreads.items()}
        net([PIXELS])
    for hook in hooks.values():
        hook.remove()
    return net


@pytest.fixture(scope="module")
def file(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("torchvision") / "net.pth"
    torch.save(theirs.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def names(file: Path) -> Path:
    path = file.with_name("names.txt")
    path.write_text("ant\nbee\ncat\ndog\n")
    return path


def test_boxes_and_scores_are_torchvisions(theirs: Any, file: Path, names: Path, tmp_path: Path) -> None:
    with torch.no_grad():
        (wanted,) = theirs([PIXELS])
    detector = import_torchvision(file, names, SIZE)
    assert (detector.classes, detector.class_ids) == (("ant", "bee", "cat", "dog"), (1, 2, 3, 4))
    detector.save(tmp_path / "model.safetensors")
    for model in (detector, load_detector(tmp_path / "model.safetensors")):
        (found,) = model.predict_samples([Sample(IMAGE)], Limits(conf=0.05, iou=0.5, max_detections=100))
        assert len(found) == len(wanted["scores"]) > 20
        assert len(set(found.labels.tolist())) > 1
        # Scores that are all but equal may change places.
        same = found.labels == wanted["labels"].numpy()[:, None] - 1
        pairs = (iou(wanted["boxes"].numpy(), found.boxes) * same).argmax(axis=1)
        assert sorted(pairs) == list(range(len(found)))
        np.testing.assert_allclose(found.scores[pairs], wanted["scores"].numpy(), atol=1e-4)
        np.testing.assert_allclose(found.boxes[pairs], wanted["boxes"].numpy(), atol=2e-3)


def test_older_files_and_frozen_statistics(theirs: Any, file: Path, names: Path, tmp_path: Path) -> None:
    """Names from before torchvision 0.13, no counters of batches; the published file was made for an eps of 0."""
    renamed = {"rpn.head.conv.0.0.": "rpn.head.conv.", "_blocks.0.0.": "_blocks.0.", "_blocks.1.0.": "_blocks.1."}
    renamed |= {"_blocks.2.0.": "_blocks.2.", "_blocks.3.0.": "_blocks.3."}
    state = {}
    for key, value in theirs.state_dict().items():
        for new, old in renamed.items():
            key = key.replace(new, old)
        if not key.endswith("num_batches_tracked"):
            state[key] = value
    published = tmp_path / importer._WEIGHTS.url.rsplit("/", 1)[1]
    torch.save(state, published)
    save_file(state, tmp_path / "net.safetensors")
    new = import_torchvision(file, names).state_dict()
    for path, eps in ((published, 1e-5), (tmp_path / "net.safetensors", 0.0)):
        for key, value in import_torchvision(path, names).state_dict().items():
            shift = eps if key.startswith("backbone") and key.endswith("running_var") else 0.0
            torch.testing.assert_close(value, new[key] - shift if shift else new[key], rtol=0, atol=0, msg=key)


def test_cocos_classes_are_those_with_a_name(theirs: Any, tmp_path: Path) -> None:
    state = theirs.state_dict()
    predictor = "roi_heads.box_predictor."
    state |= {f"{predictor}cls_score.weight": torch.arange(91.0)[:, None].expand(91, 1024).contiguous()}
    state |= {f"{predictor}cls_score.bias": torch.zeros(91), f"{predictor}bbox_pred.bias": torch.zeros(364)}
    state |= {f"{predictor}bbox_pred.weight": torch.zeros(364, 1024)}
    torch.save(state, tmp_path / "coco.pth")
    detector = import_torchvision(tmp_path / "coco.pth")
    assert detector.classes == COCO_CLASSES
    assert detector.head.classes.weight[:, 0].tolist() == [*detector.class_ids, 0]


def test_the_verb(file: Path, names: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model.safetensors"
    words = ["import", "torchvision", str(file), "--names", str(names), "-o", str(out)]
    assert main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bytes"] == out.stat().st_size
    assert (report["size"], report["strides"]) == ([800, 1333], [4, 8, 16, 32, 64])
    assert main(words) == 2
    assert "exists" in capsys.readouterr().err


def broken(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path, Path], None]:
    return lambda source, path: torch.save(change(torch.load(source, weights_only=True)), path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda source, path: None, "no such file"),
        (lambda source, path: path.write_bytes(source.read_bytes()[:5000]), "cannot be read"),
        (lambda source, path: path.write_text("weights"), "holds no weights|cannot be read"),
        (lambda source, path: torch.save({"net": Path("x")}, path), "more than tensors"),
        (broken(lambda state: {"model": state}), "it has no roi_heads"),
        (broken(lambda state: {k: v for k, v in state.items() if "fc7" not in k}), "not that of fasterrcnn"),
        (broken(lambda state: {**state, "roi_heads.mask_head.weight": torch.zeros(1)}), "not that of fasterrcnn"),
        (broken(lambda state: {**state, "rpn.head.bbox_pred.bias": torch.zeros(60)}), "not that of fasterrcnn"),
        (broken(lambda state: list(state)), "no state dict|more than tensors"),
    ],
)
def test_files_that_cannot_be_imported(
    make: Callable[[Path, Path], Any], said: str, file: Path, tmp_path: Path
) -> None:
    make(file, tmp_path / "net.pth")
    with pytest.raises(DetkitError, match=said):
        import_torchvision(tmp_path / "net.pth")


def test_names_that_do_not_fit(file: Path, tmp_path: Path) -> None:
    with pytest.raises(DetkitError, match="4 classes need names"):
        import_torchvision(file)
    for text, said in (("a\nb\n", "2 names for 4"), ("a\nb\na\nc", "'a' is there twice")):
        (tmp_path / "names.txt").write_text(text)
        with pytest.raises(DetkitError, match=said):
            import_torchvision(file, tmp_path / "names.txt")
