"""The notebooks run, and show what they show."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs/notebooks").glob("*.ipynb"))


def outputs(book: Any) -> list[list[str]]:
    """Of each code cell, the kinds of what it shows; on stderr other packages may warn."""
    return [
        [one["output_type"] for one in cell.outputs if one.get("name") != "stderr"]
        for cell in book.cells
        if cell.cell_type == "code"
    ]


def text_of(book: Any) -> str:
    """All that is printed."""
    return "".join(
        str(one.get("text", "") or one.get("data", {}).get("text/html", ""))
        for cell in book.cells
        if cell.cell_type == "code"
        for one in cell.outputs
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_is_kept(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    kept = nbformat.read(path, as_version=4)
    book = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(book, timeout=1800, startup_timeout=600, resources=place).execute()
    assert outputs(book) == outputs(kept)
    text = text_of(book)
    assert text.count('<img alt="detections"') == 1
    if path.stem == "train":
        assert '<img alt="losses and scores"' in text
        assert "epoch 5/5" in text
    else:
        assert "<td>person</td>" in text
        ours, theirs = (re.search(r"AP50 +([\d.]+)", said)[1] for said in (text, text_of(kept)))  # type: ignore[index]
        assert ours == theirs
    assert str(Path.home()) not in text_of(kept)
