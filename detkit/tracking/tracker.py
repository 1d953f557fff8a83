"""The tracker: detections of frame after frame in, the same with a number for each object out.

Two stages of matching by overlap as in ByteTrack (Zhang et al. 2022): sure detections first, then doubtful ones for
the tracks that are left. A track that is found again after a gap is filtered anew along the straight way between, as
OC-SORT does (Cao et al. 2023, section 4.1: observation-centric re-update). Both can be left out.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from detkit.arrays import is_tensor
from detkit.errors import DetkitError
from detkit.ops.boxes import convert, iou, valid
from detkit.structures import Detections
from detkit.tracking import kalman
from detkit.tracking.camera import CameraMotion

_RATE = 30.0  # frames a second, in which the filter's noise is measured
_NEVER = 1e5  # the cost of a pair that is not allowed
# The least overlap; times score of sure detections and new tracks. Where a lost track is, is less certain.
_SURE, _LOST, _DOUBTFUL, _DOUBTFUL_LOST, _NEW = 0.2, 0.1, 0.5, 0.2, 0.3
_MEMORY = 0.9  # of a track's appearance, per frame

# Number (0: not sure yet), class, frames in which it was seen, the last of them; its filter, the same when it was last
# seen, and the box then (centre, width, height).
_TRACK = np.dtype(
    [(name, "i8") for name in ("id", "label", "hits", "seen")]
    + [("now", "f8", kalman.SHAPE), ("then", "f8", kalman.SHAPE), ("box", "f8", 4)]
)


class Tracker:
    """Gives each object the same number from frame to frame.

    Args:
        fps: Frames a second; None: 30.
        high: Detections from this score on begin tracks and are matched first.
        low: Detections below this score are not looked at.
        lost: Seconds that a track outlives its last detection.
        hits: Frames in a row in which an object must be seen before it gets a number (those of the first frame get
            theirs at once).
        two_stage: Match the detections from ``low`` to ``high`` to the tracks that are left (ByteTrack).
        re_update: Filter anew over the gap when a track is found again (OC-SORT).
        by_class: Only detections of one class make a track.
        camera: Allow for a moving camera; ``update`` then needs the images.
        appearance: The least likeness, -1 to 1, by which a lost track is found again, wherever it is; None: appearance,
            ``extra["embedding"]`` (N, D) of the detections, is not looked at.

    Attributes:
        frame: The number of the last frame, -1 before the first.

    Raises:
        DetkitError: A value out of range.
    """

    def __init__(
        self,
        *,
        fps: float | None = None,
        high: float = 0.5,
        low: float = 0.1,
        lost: float = 2.0,
        hits: int = 2,
        two_stage: bool = True,
        re_update: bool = True,
        by_class: bool = True,
        camera: bool = False,
        appearance: float | None = None,
    ) -> None:
        self.fps = _RATE if fps is None else fps
        ranges = {"fps": (self.fps, 0.01, 1e4), "high": (high, 0, 1), "low": (low, 0, 1), "hits": (hits, 1, 1e4)}
        ranges |= {"lost": (lost, 0, 1e6), "appearance": (appearance or 0.0, -1, 1)}
        for name, (value, least, most) in ranges.items():
            if not least <= value <= most:
                raise DetkitError(f"{name} must lie between {least} and {most:g}, got {value:g}", "Tracker")
        self.high, self.low, self.hits = high, low if two_stage else high, hits
        self.re_update, self.by_class, self.appearance = re_update, by_class, appearance
        self._lost = lost * self.fps
        self._camera = CameraMotion() if camera else None
        self._tracks = np.zeros(0, _TRACK)
        self.frame, self._before = -1, -1
        self._ids = 0
        self._looks = np.zeros((0, 0))  # of each track; no numbers where appearance is not looked at
        self._usual: np.ndarray | None = None  # the mean appearance, which says nothing of anyone

    def update(
        self, detections: Detections, *, frame: int | None = None, image: np.ndarray | None = None
    ) -> Detections:
        """The detections of the next frame that belong to a track, as ``extra["track_id"]`` (N,) int64 from 1 says.

        Args:
            detections: Of one frame, numpy or torch.
            frame: Its number, which grows; None: the next. Numbers that are left out are frames without a look.
            image: uint8 (H, W, 3) RGB, for a moving camera.

        Returns:
            Some of the detections (numpy), in the same order.

        Raises:
            DetkitError: ``frame`` is not after the last one, or the image or the embeddings that were asked for are not
                there.
        """
        found = detections.numpy() if is_tensor(detections.boxes) else detections
        number = self.frame + 1 if frame is None else frame
        if number <= self.frame:
            do = "give the frames of one video in their order, and a new Tracker for each video"
            raise DetkitError(f"frame {number} came after frame {self.frame}", "Tracker.update", do)
        first = self.frame < 0
        self._before, self.frame, time = self.frame, number, (1 if first else number - self.frame) * _RATE / self.fps
        good = valid(found.boxes) & (found.scores >= self.low)
        found = found if good.all() else found[good]
        boxes, looks = convert(found.boxes.astype(np.float64), "xyxy", "cxcywh"), self._embeddings(found)
        self._looks = self._looks.reshape(len(self._tracks), looks.shape[1])
        now = self._tracks["now"].copy()
        kalman.predict(now, time)
        self._tracks["now"] = now
        if self._camera is not None:
            if image is None:
                raise DetkitError("the image is needed", "Tracker.update", "give image=, or Tracker(camera=False)")
            self._shift(self._camera(image, found.boxes))
        rows, which = self._match(found, looks)
        owners = np.full(len(found), -1)
        owners[which] = rows
        self._see(rows, boxes[which], found.labels[which], looks[which])
        new = np.flatnonzero((owners < 0) & (found.scores >= self.high))
        owners[new] = len(self._tracks) + np.arange(len(new))
        if len(new):
            self._begin(boxes[new], found.labels[new], looks[new])
        named = self._name(first)
        ids = np.where(owners < 0, 0, named[owners] if len(named) else 0)
        found = found if (ids > 0).all() else found[ids > 0]
        extra = {name: value for name, value in found.extra.items() if name != "embedding"}
        return replace(found, extra={**extra, "track_id": ids[ids > 0]})

    @property
    def living(self) -> np.ndarray:
        """The numbers of the tracks that are seen or may be found again."""
        return np.asarray(self._tracks["id"][self._tracks["id"] > 0])

    def _match(self, found: Detections, looks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of tracks and the rows of the detections that continue them."""
        tracks, strong = self._tracks, found.scores >= self.high
        known, lost, weak = tracks["id"] > 0, tracks["seen"] < self._before, ~strong
        new = ~known
        pairs = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
        overlaps = iou(convert(tracks["now"][:, 0], "cxcywh", "xyxy"), found.boxes.astype(np.float64))
        alike = tracks["label"][:, None] == found.labels if self.by_class else np.True_
        overlaps = np.where(alike, overlaps, 0)
        sure = overlaps * found.scores
        near, rank = (sure >= _SURE) | (lost[:, None] & (overlaps >= _LOST)), overlaps
        likeness = self._likeness(looks)
        if likeness is not None:  # who was out of sight may be somebody else; of several, the one that looks like it
            near, rank = near & (~lost[:, None] | (likeness >= 0)), overlaps + likeness
        stages = [
            (known, strong, near, rank),
            (known, weak, overlaps >= np.where(lost, _DOUBTFUL_LOST, _DOUBTFUL)[:, None], overlaps),
            (new, strong, sure >= _NEW, overlaps),
        ]
        if likeness is not None:
            again = (likeness >= (self.appearance or 0.0)) & alike
            stages.insert(1, (known, strong, again & lost[:, None], likeness))
        for who, those, allowed, worth in stages:
            t, d = np.flatnonzero(who), np.flatnonzero(those)
            if len(t) and len(d):
                cost = np.where(allowed, -worth, _NEVER)[t[:, None], d]
                i, j = linear_sum_assignment(cost)
                good = cost[i, j] < _NEVER
                t, d = t[i[good]], d[j[good]]
                known[t], new[t], strong[d], weak[d] = False, False, False, False
                pairs.append((t, d))
        rows, which = zip(*pairs, strict=True)
        return np.concatenate(rows), np.concatenate(which)

    def _see(self, rows: np.ndarray, boxes: np.ndarray, labels: np.ndarray, looks: np.ndarray) -> None:
        """Tracks go on with their detections."""
        tracks = self._tracks
        states, gaps = tracks["now"][rows], self.frame - tracks["seen"][rows]
        again = tracks["seen"][rows] < self._before
        if self.re_update and again.any():  # as if they had gone straight from where they were last seen
            anew = tracks["then"][rows[again]]
            kalman.travel(anew, tracks["box"][rows[again]], boxes[again], gaps[again], _RATE / self.fps)
            states[again] = anew
        kalman.update(states, boxes)
        tracks["now"][rows] = tracks["then"][rows] = states
        tracks["box"][rows], tracks["seen"][rows], tracks["label"][rows] = boxes, self.frame, labels
        tracks["hits"][rows] += 1
        self._looks[rows] = _MEMORY * self._looks[rows] + (1 - _MEMORY) * looks

    def _begin(self, boxes: np.ndarray, labels: np.ndarray, looks: np.ndarray) -> None:
        new = np.zeros(len(boxes), _TRACK)
        new["now"] = new["then"] = kalman.start(boxes)
        new["box"], new["label"], new["hits"], new["seen"] = boxes, labels, 1, self.frame
        self._looks = np.concatenate([self._looks, looks])
        self._tracks = np.concatenate([self._tracks, new])

    def _name(self, first: bool) -> np.ndarray:
        """The number of each track, before those that have ended are dropped."""
        tracks = self._tracks
        ready = np.flatnonzero((tracks["id"] == 0) & ((tracks["hits"] >= self.hits) | first))
        tracks["id"][ready] = self._ids + 1 + np.arange(len(ready))
        self._ids += len(ready)
        named = tracks["id"].copy()
        missing = tracks["seen"] < self.frame
        tracks["now"][missing, 1, 2:] = 0  # a box out of sight does not go on growing
        ended = missing & ((tracks["id"] == 0) | (self.frame - tracks["seen"] > self._lost))
        self._tracks, self._looks = tracks[~ended], self._looks[~ended]
        return named

    def _embeddings(self, found: Detections) -> np.ndarray:
        """(N, D): how each detection differs from the usual, of length 1; (N, 0) where it is not looked at."""
        if self.appearance is None:
            return np.zeros((len(found), 0))
        if "embedding" not in found.extra:
            do = 'give extra["embedding"], or Tracker(appearance=None)'
            raise DetkitError("the detections have no embeddings", "Tracker.update", do)
        looks = np.asarray(found.extra["embedding"], np.float64)
        if not len(looks):
            return np.zeros((0, self._looks.shape[1]))
        mean = looks.mean(0)
        self._usual = mean if self._usual is None else 0.98 * self._usual + 0.02 * mean
        looks = looks - self._usual
        return np.asarray(looks / np.maximum(np.linalg.norm(looks, axis=1, keepdims=True), 1e-9))

    def _likeness(self, looks: np.ndarray) -> np.ndarray | None:
        """(tracks, N): cosine of their appearances; None: it is not looked at."""
        if self.appearance is None or not len(looks) or not len(self._tracks):
            return None
        return np.asarray(self._looks @ looks.T / np.maximum(np.linalg.norm(self._looks, axis=1, keepdims=True), 1e-9))

    def _shift(self, motion: np.ndarray) -> None:
        """Moves all that is known of the tracks as the camera's motion moved the image."""
        turn, scale = motion[:, :2], float(np.sqrt(abs(np.linalg.det(motion[:, :2]))))
        now, then = self._tracks["now"], self._tracks["then"]
        for velocities in (now[:, 1], then[:, 1]):
            velocities[:, :2] = velocities[:, :2] @ turn.T
        for boxes in (now[:, 0], then[:, 0], self._tracks["box"]):
            boxes[:, :2] = boxes[:, :2] @ turn.T + motion[:, 2]
            boxes[:, 2:] *= scale
