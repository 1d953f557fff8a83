"""FiftyOne's own json for detection: data/ with the images, and labels.json.

FiftyOneImageDetectionDataset in https://docs.voxel51.com/user_guide/dataset_creation/datasets.html: for each image, by
its name without ending, boxes x, y, width, height as fractions of the image, with a class's name or number.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from detkit.data.label_files import LabelFilesFormat, LabelTable, decode_json


class _Detection(msgspec.Struct):
    bounding_box: tuple[float, float, float, float]
    label: str | int | None = None
    confidence: float | None = None


class _File(msgspec.Struct):
    labels: dict[str, list[_Detection] | None]
    classes: list[str] | None = None


class FiftyOneFormat(LabelFilesFormat):
    """A labels.json, or a folder that holds it, or one for each part."""

    name = "fiftyone"
    looked_for = "a FiftyOne image detection data set (labels.json and data/)"

    def listed(self, path: Path) -> list[str]:
        """Those that the files name."""
        return [name for file in self.places(path).values() for name in self._file(file).classes or ()]

    def table(self, place: Path) -> LabelTable:
        """One labels.json."""
        content, table = self._file(place), LabelTable(place)
        table.fractions = True
        names = dict(enumerate(content.classes or ()))
        for image, detections in content.labels.items():
            index = table.image(image)
            for one in detections or ():
                where, (x, y, w, h) = f"{place}: {image}", one.bounding_box
                if one.confidence is not None:
                    table.findings.add("score of a box (left out)", where, note=True)
                label = names.get(one.label, str(one.label)) if isinstance(one.label, int) else one.label or ""
                table.add(index, label, (x, y, x + w, y + h), where)
        return table

    def _file(self, path: Path) -> _File:
        return decode_json(path, _File, "a FiftyOne image detection data set")
