"""Proposals: where candidate boxes come from (``detkit.interfaces.ProposalSource``)."""

from __future__ import annotations

PROPOSALS = {
    "rpn": "detkit.proposals.rpn:RPN",
    "windows": "detkit.proposals.windows:Windows",
    "selective_search": "detkit.proposals.search:SelectiveSearch",
}
