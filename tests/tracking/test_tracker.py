"""The tracker: numbers that stay, gaps, doubtful detections, classes, looks and a moving camera."""

from __future__ import annotations

import numpy as np
import pytest

from detkit import Detections, DetkitError, Tracker
from detkit.tracking import kalman
from detkit.tracking.camera import CameraMotion


def found(*boxes: tuple[float, ...], scores: float | list[float] = 0.9, labels: list[int] | None = None) -> Detections:
    n = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.broadcast_to(scores, n), [0] * n if labels is None else labels
    )


def moving(i: int, x: float = 0.0, speed: float = 5.0) -> tuple[float, ...]:
    left = x + speed * i
    return left, 10, left + 40, 60


def ids(tracked: Detections) -> list[int]:
    return tracked.extra["track_id"].tolist()


def test_the_filter_is_the_textbooks() -> None:
    """Against the matrix form of one coordinate, worked step by step."""
    state = kalman.start(np.array([[100.0, 50, 40, 80]]))
    mean, cov = np.array([100.0, 0]), np.diag([(2 * 40 / 30) ** 2, (10 * 40 / 160) ** 2])
    width = 40.0
    for place in (103.0, 109.0, 112.0):
        step = np.array([[1, 2.0], [0, 1]])
        mean, cov = step @ mean, step @ cov @ step.T + 2.0 * np.diag([(width / 30) ** 2, (width / 160) ** 2])
        gain = cov[:, 0] / (cov[0, 0] + (width / 30) ** 2)
        mean, cov = mean + gain * (place - mean[0]), cov - np.outer(gain, cov[0])
        kalman.predict(state, 2.0)
        kalman.update(state, np.array([[place, 50, 40, 80]]))
        assert state[0, :, 0] == pytest.approx([*mean, cov[0, 0], cov[0, 1], cov[1, 1]], abs=1e-9)
        assert state[0, 0, 2] == pytest.approx(width)


def test_two_objects_keep_their_numbers_whatever_their_order() -> None:
    tracker, first = Tracker(), dict[int, int]()
    for i in range(20):
        boxes = [moving(i), moving(i, 400, -5)]
        order = [0, 1] if i % 2 else [1, 0]
        tracked = tracker.update(found(*(boxes[k] for k in order), scores=[0.9, 0.8]))
        by_place = dict(zip(order, ids(tracked), strict=True))
        first = first or by_place
        assert by_place == first
    assert sorted(first.values()) == [1, 2]


def test_an_object_gets_a_number_when_seen_twice_but_at_once_in_the_first_frame() -> None:
    tracker = Tracker()
    assert ids(tracker.update(found(moving(0)))) == [1]
    assert ids(tracker.update(found(moving(1), moving(0, 300)))) == [1]
    assert ids(tracker.update(found(moving(2), moving(1, 300)))) == [1, 2]
    tracker.update(found(moving(3), moving(0, 600)))  # seen once: noise
    assert ids(tracker.update(found(moving(4)))) == [1]
    assert tracker.living.tolist() == [1, 2]


@pytest.mark.parametrize(("gap", "same"), [(1, True), (9, True), (12, False)])
def test_a_track_outlives_misses_for_as_long_as_was_asked(gap: int, same: bool) -> None:
    tracker = Tracker(fps=10, lost=1.0, hits=1)
    for i in range(10):
        tracker.update(found(moving(i, speed=2)))
    for _ in range(gap):
        assert ids(tracker.update(found())) == []
    assert ids(tracker.update(found(moving(10 + gap, speed=2)))) == [1 if same else 2]


def test_frames_that_are_left_out_are_time_too() -> None:
    one, other = Tracker(hits=1), Tracker(hits=1)
    for i in (0, 1, 2, 3, 4, 9, 10):
        for missing in range(5, 9) if i == 9 else ():
            other.update(found(), frame=missing)
        a, b = one.update(found(moving(i)), frame=i), other.update(found(moving(i)), frame=i)
        assert ids(a) == ids(b) == [1]


def test_doubtful_detections_continue_tracks_and_begin_none() -> None:
    tracker, strict = Tracker(), Tracker(two_stage=False)
    for one in (tracker, strict):
        for i in range(3):
            one.update(found(moving(i)))
    doubtful = found(moving(3), moving(0, 300), scores=[0.3, 0.3])
    assert ids(tracker.update(doubtful)) == [1]
    assert ids(strict.update(doubtful)) == []


def test_re_update_is_the_filter_of_the_straight_way_between() -> None:
    """Found again after a gap, a track is as if it had been seen all along the line to where it came back."""
    hidden, seen, plain = Tracker(), Tracker(), Tracker(re_update=False)
    for i in range(20):
        for tracker in (hidden, seen, plain):
            tracker.update(found(moving(i, speed=1)))
    for step in range(1, 12):
        for tracker in (hidden, plain):
            assert ids(tracker.update(found(*[moving(0, 8)] if step == 11 else ()))) == [1] * (step == 11)
        seen.update(found(moving(step, 19, -1)))
    assert hidden._tracks["now"] == pytest.approx(seen._tracks["now"])
    assert plain._tracks["now"][0, 1, 0] != pytest.approx(seen._tracks["now"][0, 1, 0])


@pytest.mark.parametrize(("re_update", "kept"), [(True, [1]), (False, [])])
def test_re_update_keeps_who_turned_out_of_sight_and_is_soon_hidden_again(re_update: bool, kept: list[int]) -> None:
    """Who stood, and went 30 pixels in 41 hidden frames, goes on at that pace: only so is it found after 170 more."""
    tracker = Tracker(re_update=re_update, lost=10)
    for _ in range(20):
        tracker.update(found(moving(0)))
    for _ in range(40):
        tracker.update(found())
    assert ids(tracker.update(found(moving(41, speed=-30 / 41)))) == [1]
    for _ in range(169):
        tracker.update(found())
    assert ids(tracker.update(found(moving(211, speed=-30 / 41)))) == kept


def test_classes_are_kept_apart_unless_told() -> None:
    for by_class, wanted in ((True, []), (False, [1])):
        tracker = Tracker(by_class=by_class)
        tracker.update(found(moving(0)))
        assert ids(tracker.update(found(moving(1), labels=[1]))) == wanted


def test_a_lost_object_is_known_again_by_its_looks() -> None:
    looks = np.array([[5.0, 1, 0], [5.0, 0, 1]])
    tracker = Tracker(appearance=0.5, lost=5)
    names = []
    for i in range(40):
        boxes = [(0, 0, 40, 40), (400, 0, 440, 40)]
        if 10 <= i < 20:
            which: list[int] = []
        else:
            which = [0, 1]
        if i >= 20:  # they come back having changed places
            boxes.reverse()
        one = found(*(boxes[k] for k in which))
        one = Detections(one.boxes, one.scores, one.labels, extra={"embedding": looks[which].reshape(-1, 3)})
        tracked = tracker.update(one)
        assert set(tracked.extra) == {"track_id"}
        names.append(ids(tracked))
    assert names[0] == names[-1] == [1, 2]


def test_a_moving_camera_is_allowed_for() -> None:
    rng = np.random.default_rng(0)
    world = rng.integers(0, 256, (40, 80), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    motion = CameraMotion()
    shift = 0
    found_ids = []
    trackers = Tracker(camera=True), Tracker()
    for i in range(6):
        shift += 24 if i > 2 else 0
        image = np.repeat(world[100:400, shift : shift + 480, None], 3, 2)
        box = (300 - shift, 100, 320 - shift, 120)
        seen = motion(image, np.array([box]))
        if i > 2:
            assert seen[:, 2] == pytest.approx([-24, 0], abs=0.5)
        found_ids.append([ids(tracker.update(found(box), image=image)) for tracker in trackers])
    assert found_ids[-1][0] == [1]
    assert found_ids[3][1] == []  # without it the object is another


def test_memory_does_not_grow() -> None:
    tracker, rng = Tracker(lost=0.2), np.random.default_rng(0)
    for _ in range(300):
        corners = rng.uniform(0, 1000, (5, 2))
        tracker.update(found(*np.concatenate([corners, corners + 30], 1)))
    assert len(tracker._tracks) < 60


def test_nothing_given_is_changed_and_tensors_are_taken() -> None:
    import torch

    one = found(moving(0)).to("cpu")
    tracked = Tracker().update(one)
    assert isinstance(one.boxes, torch.Tensor)
    assert tracked.boxes.tolist() == one.boxes.tolist()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Tracker(high=1.5), "high must lie"),
        (lambda: Tracker(fps=-1), "fps must lie"),
        (lambda: Tracker(lost=float("nan")), "lost must lie"),
        (lambda: Tracker(camera=True).update(found(moving(0))), "the image is needed"),
        (lambda: Tracker(appearance=0.5).update(found(moving(0))), "no embeddings"),
    ],
)
def test_mistakes(make, said: str) -> None:
    with pytest.raises(DetkitError, match=said):
        make()


def test_frames_out_of_order_are_refused() -> None:
    tracker = Tracker()
    tracker.update(found(moving(0)), frame=4)
    with pytest.raises(DetkitError, match="frame 4 came after frame 4"):
        tracker.update(found(moving(0)), frame=4)


def test_appearance_comes_from_the_neck_and_follows_the_pixels() -> None:
    """Two alike patches look alike, and unlike a third."""
    import torch

    import detkit
    from detkit.prediction.appearance import WithAppearance
    from detkit.structures import Limits, Sample

    detector = detkit.load(size=320)
    rng = np.random.default_rng(0)
    patch, other = (rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(2))
    image = np.full((320, 320, 3), 110, np.uint8)
    image[32:96, 32:96] = image[32:96, 192:256] = patch
    image[192:256, 32:96] = other
    boxes = torch.tensor([[32.0, 32, 96, 96], [192, 32, 256, 96], [32, 192, 96, 256]])
    plain = Detections(boxes, torch.ones(3), torch.zeros(3), detector.classes)
    looking = WithAppearance(detector)
    detector.forward = lambda batch, limits: (detector.features(batch.pixels), [plain])[1]  # type: ignore[method-assign]
    looks = looking.predict_samples([Sample(image)], Limits())[0].extra["embedding"]
    looks = looks / np.linalg.norm(looks, axis=1, keepdims=True)
    assert looks.shape[0] == 3
    assert 1 - looks[0] @ looks[1] < (1 - looks[0] @ looks[2]) / 5


def test_appearance_may_come_from_a_model_that_sees_the_boxes_cut_out() -> None:
    """A red and a blue square vanish and come back elsewhere, having changed rows: without looks they are new."""
    import torch

    from detkit.config.build import build_detector
    from detkit.config.experiment import Config, EvaluateOptions, check_model
    from detkit.config.schema import Place
    from detkit.engine.options import TrainOptions
    from detkit.prediction.appearance import WithAppearance
    from detkit.predictor import Predictor
    from detkit.structures import Limits, Sample

    torch.manual_seed(0)
    parts = {"size": 16, "backbone": {"name": "lenet_textbook", "taps": [1]}, "head": {"name": "embed", "dim": 16}}
    looks = build_detector(
        Config({}, check_model(parts, Place()), {}, TrainOptions(), EvaluateOptions()), ["any"]
    ).eval()
    rows = {False: (10, 60), True: (60, 10)}

    class Squares(Predictor):
        classes = ("square",)

        def predict_samples(self, samples: list[Sample], limits: Limits) -> list[Detections]:
            places = [np.argwhere((sample.image == colour).all(-1)) for sample in samples for colour in COLOURS]
            return [found(*((x, y, x + 20, y + 20) for y, x in (one.min(0) for one in places if len(one))))]

    names: dict[bool, list[int]] = {}
    for seen in (False, True):
        tracker = Tracker(appearance=0.5 if seen else None, lost=5)
        detector = WithAppearance(Squares(), looks) if seen else Squares()
        for i in range(24):
            image = np.full((100, 300, 3), 110, np.uint8)
            for y, colour in zip(rows[i >= 12], COLOURS, strict=True):
                x = 200 if i >= 12 else 20
                image[y : y + 20, x : x + 20] = colour
            if 8 <= i < 12:
                image[:] = 110
            tracked = tracker.update(detector.predict_samples([Sample(image)], Limits())[0])
        names[seen] = ids(tracked)
    assert names[True] == [1, 2]
    assert set(names[False]).isdisjoint({1, 2})


COLOURS = ((220, 20, 20), (20, 20, 220))
