"""HEIC, what phones write: read where its reader is installed; MPO, a JPEG with a second image behind it."""

from __future__ import annotations

import base64
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from detkit.errors import DetkitError
from detkit.io.images import IMAGE_SUFFIXES, image_size, paths_in, read_image, write_image

# 24 x 16 pixels: four white rows above red, left, and blue.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAXxtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA"
    "ACJpbG9jAAAAAERAAAEAAQAAAAABoAABAAAAAAAAAL8AAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRt"
    "AAAAAAABAAAA/GlwcnAAAADcaXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMA"
    "AAMAHroCQGEAAQApQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbqrprm4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNs"
    "eAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFwAAAAGAAAAAEAAAAQAAAAAf///9gAAAAC////0AAAAAIAAAAQcGl4"
    "aQAAAAADCAgIAAAAGGlwbWEAAAAAAAAAAQABBYECAwWEAAAAx21kYXQAAAC7KAGvBjIesgOwXrHBcX/9TBsT+cZdi8Ajz0VlPqq1"
    "a1xjxJyPxuX9D/SD+yi09NP/1L8yqHkf6Hu9hQjtfkxnYQRYU4C9gVChJCkc5BC1jmS8y5c3f/ipYAO/aXfZen6AUYlsoqhth8AX"
    "6oiiVe9lSvdVEBMPa8Ptz1wXA7j+S0OARhqlk0nv1KqDJ1vgpNyXLtg9M/MiS3yY4k32mijAA54pB0B8/Z5/P5JX8Id/IhsA5X8S"
    "tHAdn0sTYA=="
)
installed = importlib.util.find_spec("pi_heif") is not None


@pytest.mark.skipif(not installed, reason="pi-heif is not installed")
def test_heic_is_read(tmp_path: Path) -> None:
    file = tmp_path / "phone.heic"
    file.write_bytes(HEIC)
    assert paths_in(tmp_path) == [file]
    assert image_size(file) == (24, 16)
    image = read_image(file)
    for (y, x), colour in {(1, 5): (255, 255, 255), (10, 3): (255, 0, 0), (10, 20): (0, 0, 255)}.items():
        np.testing.assert_allclose(image[y, x], colour, atol=4)
    for cut in (300, len(HEIC) - 40):
        with pytest.raises(DetkitError, match="cut off"):
            read_image(HEIC[:cut])


@pytest.mark.skipif(installed, reason="pi-heif is installed")
def test_heic_without_its_reader_says_how_to_get_it() -> None:
    assert ".heic" not in IMAGE_SUFFIXES
    with pytest.raises(DetkitError, match=r'pip install "detkit\[heif\]"'):
        read_image(HEIC)


def test_the_first_image_of_an_mpo_is_read(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", np.full((8, 8, 3), 90, np.uint8))
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "b.MPO").write_bytes(data + data)
    assert len(paths_in(tmp_path)) == 2
    np.testing.assert_array_equal(read_image(tmp_path / "b.MPO"), read_image(tmp_path / "a.jpg"))
