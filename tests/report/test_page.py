"""The page: well-formed, self-contained, and shown by a real browser where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import cv2
import pytest

from detkit.errors import DetkitError
from detkit.report.content import Settings, build_report
from detkit.report.page import html_table, write_report
from detkit.tables import Results

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "img", "br"}
MODEL = {"name": "best & <only>", "parameters": 1234567, "multiply-adds": 10**9, "input": "320 x 320"}
TIMINGS = {"images": 3, "batches": [(2, 0.1, 0.2, 0.01), (1, 0.1, 0.2, 0.01)]}


class Strict(HTMLParser):
    """Every element closed in order; collects what is fetched, what is linked, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = dict(attrs)
        self.sources += [values[key] or "" for key in ("src", "srcset", "poster", "data") if key in values]
        self.links += [values["href"] or ""] if tag == "a" else []
        self.ids += [values["id"] or ""] if "id" in values else []
        assert not [key for key in values if key.startswith("on")]
        assert tag != "img" or values.get("alt")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def written(case, name: str) -> Path:
    whole = build_report(case.annotations, case.results, Settings(bootstrap=5), about=MODEL, timings=TIMINGS)
    path = case.file.parent / "out" / name
    assert write_report(path, whole, "model <1> on data & more") == 0
    return path


@pytest.fixture(scope="module")
def page(kept_case) -> Path:
    return written(kept_case, "report.html")


def parsed(path: Path) -> Strict:
    parser = Strict()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    assert parser.open == []
    return parser


def test_well_formed_and_self_contained(page: Path) -> None:
    got = parsed(page)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & got.tags
    assert got.sources
    assert all(source.startswith("data:image/") for source in got.sources)
    assert not re.search(r"url\(|@import|https?://", re.sub(r'"data:[^"]*"', "", page.read_text(encoding="utf-8")))
    assert {link[1:] for link in got.links if link.startswith("#")} == set(got.ids)
    for word in ("95% interval", "best F1", "expected calibration error", "background", "localization", "cow & <calf>"):
        assert word in got.text
    for word in ("milliseconds per image", "post-processing", "1,234,567", "best & <only>", "100 detections", "crowd"):
        assert word in got.text


def test_links_lead_to_the_images(page: Path) -> None:
    files = [link for link in parsed(page).links if not link.startswith("#")]
    assert files
    assert all((page.parent / unquote(link)).is_file() for link in files)


def test_the_same_numbers_give_the_same_page(page: Path, kept_case) -> None:
    assert written(kept_case, "again.html").read_bytes() == page.read_bytes()


def test_without_images_without_detections_and_over_a_file(case) -> None:
    for file in case.file.parent.glob("*.jpg"):
        file.unlink()
    path = case.file.parent / "r.html"
    whole = build_report(case.annotations, case.results, Settings(bootstrap=0))
    assert write_report(path, whole, "t") > 0
    assert "no image" in parsed(path).text
    with pytest.raises(DetkitError, match="exists"):
        write_report(path, whole, "t")
    nothing = Results(
        *(column[:0] for column in (case.results.image, case.results.label, case.results.xywh)), case.results.score[:0]
    )
    write_report(path, build_report(case.annotations, nothing, Settings("voc2007", bootstrap=0)), "t", overwrite=True)
    parsed(path)


def test_tables_escape_and_align() -> None:
    text = html_table(("a", "b", "c"), [("<x>", 1234, "two words"), ("y", float("nan"), "")], "A & B")
    assert "&lt;x&gt;" in text
    assert "<td>1,234</td>" in text
    assert '<td class="text">two words</td>' in text
    assert "<td>-</td>" in text
    assert "<caption>A &amp; B</caption>" in text


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_in_a_browser(page: Path, tmp_path: Path) -> None:
    """Shown without an error on the console and not blank; without its images it would be shorter."""
    shot, profile = tmp_path / "shot.png", tmp_path / "profile"
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    words += [f"--user-data-dir={profile}", "--window-size=1000,5000", "--enable-logging=stderr", "--v=0"]
    words += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--screenshot={shot}", page.as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert said == []
    picture = cv2.imread(str(shot))
    assert picture.shape[:2] == (5000, 1000)
    inked = (picture.min(axis=2) < 200).any(axis=1)
    # Headings and charts all the way down: no window of 600 rows is blank before the end of the page.
    end = inked.nonzero()[0].max()
    assert end > 2500
    assert all(inked[top : top + 600].any() for top in range(0, end - 600, 100))
