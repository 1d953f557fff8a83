"""Proposals: where candidate boxes come from. A new source is its own file and a line here.

``Source(channels, strides, *, ...)`` takes those of the neck's maps; the keyword-only arguments are its keys in a
config file. It has ``propose(batch, features, training) -> (one (R, 4) tensor an image in input pixels, raw)`` and
``loss(raw, targets, sizes) -> dict`` (empty where nothing is learned). A source that needs the original image also
has ``of_image(image, path) -> (R, 4)`` float32 in its pixels: whoever loads images calls it, in training, evaluation
and prediction alike, and ``propose`` finds the boxes in the batch.
"""

from __future__ import annotations

PROPOSALS = {
    "rpn": "detkit.proposals.rpn:RPN",
    "windows": "detkit.proposals.windows:Windows",
    "selective_search": "detkit.proposals.search:SelectiveSearch",
}
