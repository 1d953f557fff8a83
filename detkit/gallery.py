"""Matching by vectors: are two images of one identity, whose is this one, which of a folder are like it?"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from detkit.data.dataset import Dataset, read
from detkit.detector import Detector
from detkit.engine.evaluator import detect_dataset
from detkit.errors import DetkitError
from detkit.io.files import reading, write_bytes
from detkit.metrics import find_metric
from detkit.metrics.identities import Match, Measure, likeness, threshold_at


def weights_hash(model: Detector) -> str:
    """SHA-256 of the weights as they are in the model's file, whatever else that says."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def threshold_of(model: Detector, data: str | None = None, split: str | None = None, accepts: float = 0.01) -> float:
    """The likeness from which on two vectors are of one identity: it accepts at most a share of the different ones.

    Args:
        model: With head ``embed``.
        data: Folders of identities; None: those that the model was validated on, with ``accepts`` of 0.01.
        split: A part of the data.
        accepts: The share.

    Raises:
        DetkitError: There is neither, or no two identities.
    """
    metric = find_metric(model.protocol)
    if data is not None and isinstance(metric, Match):
        found = detect_dataset(model, Dataset(read(data, split=split)))
        if not len(different := metric.pairs(*found[:2])[1]):
            raise DetkitError("all images are of one identity: none could be confused", data, "give folders of several")
        return threshold_at(different, accepts)
    if data is not None or model.scores.get("threshold") is None:  # none: it was validated on one identity
        do = "give --threshold 0.8, say, or a model with head embed"
        raise DetkitError("this model knows no threshold of likeness", "--threshold", do)
    return model.scores["threshold"]


@dataclass
class Gallery:
    """Known identities as vectors; no image is kept.

    Attributes:
        model: Hash of the weights that made the vectors.
        names: Of each vector's identity, which may have several.
        table: (N, D) float32.
    """

    model: str
    names: list[str] = field(default_factory=list)
    table: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    @classmethod
    def load(cls, path: Path, model: Detector) -> Gallery:
        """The gallery in a file.

        Raises:
            DetkitError: No such file, another kind of file, or vectors of another model.
        """
        from safetensors import SafetensorError, safe_open

        with reading(str(path)), open(path, "rb"):
            pass
        try:
            with safe_open(path, "numpy") as file:
                about = json.loads((file.metadata() or {})["gallery"])
                found = cls(about["model"], list(about["names"]), file.get_tensor("table"))
        except (SafetensorError, KeyError, ValueError, TypeError, RecursionError):
            raise DetkitError("this file is no gallery", str(path), "detkit match enrol makes one") from None
        if found.model != weights_hash(model):
            what = "the gallery was made with another model, whose vectors mean something else"
            raise DetkitError(what, str(path), "match with the model that it was made with, or enrol the images anew")
        return found

    def enrol(self, name: str, table: np.ndarray) -> None:
        """Adds vectors (K, D) of an identity."""
        self.table = np.concatenate([self.table, table]) if len(self.names) else table
        self.names += [name] * len(table)

    def identify(self, vector: np.ndarray, measure: Measure) -> list[tuple[str, float]]:
        """Identities and likenesses to a vector (D,), the best of each, best first."""
        alike = likeness(vector[None], self.table, measure)[0]
        return sorted({self.names[i]: float(alike[i]) for i in np.argsort(alike)}.items(), key=lambda item: -item[1])

    def save(self, path: Path, *, overwrite: bool = True) -> None:
        """Writes the file; DetkitError where that fails."""
        from safetensors.numpy import save

        about = {"gallery": json.dumps({"model": self.model, "names": self.names})}
        write_bytes(path, save({"table": self.table}, about), overwrite=overwrite)
