"""Label files in XML: parsed without entities, which can exhaust the memory; their numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from detkit.data.annotations import Findings
from detkit.data.reading import UNSAFE

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


def parse_xml(file: Path, findings: Findings) -> Element | None:
    """The file's root; None, counted, if it is not well-formed XML or not safe to read."""
    from xml.etree.ElementTree import ParseError

    from defusedxml import DefusedXmlException, ElementTree

    try:
        root: Element = ElementTree.parse(str(file)).getroot()
    except DefusedXmlException:
        findings.add(UNSAFE, str(file))
    except (ParseError, UnicodeError, LookupError) as error:
        line = error.position[0] if isinstance(error, ParseError) else 1
        findings.add("annotation file is not XML (image dropped)", f"{file}:{line}: {error}")
    except OSError as error:
        findings.add("annotation file cannot be read (image dropped)", f"{file}: {error.strerror}")
    else:
        return root
    return None


def number_in(text: str) -> float:
    """The number that a text is; NaN if it is none."""
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")
