"""What several models, and several looks at an image, bring and cost, each against the first model alone.

    python tools/ensemble_gain.py MODEL MODEL... --data DATA [--split val] [--tta flip,scales]

One table: each model, the first one mirrored too (test-time augmentation), the first one with all of ``--tta``, all
models together, and these mirrored; AP and AP50 with 95% intervals, milliseconds an image (in batches, loading
included), and the differences by paired bootstrap: whether they are more than noise. Objects of classes that the first
model does not know are left out.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

from detkit import api
from detkit.data.dataset import Dataset, read
from detkit.engine.evaluator import detect_dataset
from detkit.explain.summary import predictor_facts
from detkit.metrics.coco import Coco
from detkit.report.comparison import Candidate, compare_results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--tta", default="flip,scales")
    parser.add_argument("--samples", type=int, default=1000, help="bootstrap draws")
    options = parser.parse_args()
    first = options.models[0]
    annotations, known = read(options.data, split=options.split), api.load(first, device="cpu").classes
    dataset = Dataset(annotations.select_classes([name for name in annotations.classes if name in known]))
    asked = [(name, name, ()) for name in options.models]
    asked += [(f"{first} --tta {views}", first, views.split(",")) for views in dict.fromkeys(["flip", options.tta])]
    if len(options.models) > 1:
        asked += [("all together", options.models, ()), ("all together, --tta flip", options.models, ["flip"])]
    candidates = []
    for title, models, view in asked:
        predictor = api.load(models, device="cpu", tta=view)
        began = time.perf_counter()
        _, results, _ = detect_dataset(predictor, dataset, workers=1)
        seconds = (time.perf_counter() - began) / len(dataset)
        candidates.append(Candidate(title, results, [seconds], None, predictor_facts(predictor)))
        print(f"{title}: {1e3 * seconds:.0f} ms an image", file=sys.stderr, flush=True)
    compared = compare_results(dataset.annotations.ground_truth(), candidates, samples=options.samples)
    against = [one for one in compared.differences if one["first"] == first]
    print("\n".join(replace(compared, differences=against).lines(Coco.scores)))


if __name__ == "__main__":
    main()
