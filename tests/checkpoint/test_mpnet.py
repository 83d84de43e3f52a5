"""The model mpnet is put together from the pieces of an archive in installed packages, once."""

import hashlib
import io
import sys
import zipfile

import pytest

from fineprune import FinepruneError
from fineprune.checkpoint import mpnet
from fineprune.checkpoint.model_folder import find_model


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Two packages with the halves of an archive; the cache is a folder of its own."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        for name, content in (("config.json", "{}"), ("1_Pooling/config.json", "[]"), ("desktop.ini", "x")):
            made.writestr(f"all-mpnet-base-v2/{name}", content)
        made.mkdir("all-mpnet-base-v2/2_Normalize")
    whole = archive.getvalue()
    site, parts = tmp_path / "site", ("mpnet-test-part_1", "mpnet-test-part_2")
    for number, (part, piece) in enumerate(zip(parts, (whole[:99], whole[99:]), strict=True), 1):
        folder = site / part / "input"
        folder.mkdir(parents=True)
        (site / part / "__init__.py").write_text("")
        (folder / f"all-mpnet-base-v2.zip.00{number}").write_bytes(piece)
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    monkeypatch.setattr(mpnet, "PARTS", parts)
    monkeypatch.setattr(mpnet, "SHA256", hashlib.sha256(whole).hexdigest())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return site


def test_it_is_written_once(packages, tmp_path, capsys, monkeypatch):
    place = tmp_path / "cache" / "fineprune" / "all-mpnet-base-v2"
    assert find_model("mpnet") == place
    assert capsys.readouterr().err == f"mpnet: writing all-mpnet-base-v2 to {place}, once\n"
    files = {str(path.relative_to(place)): path.read_text() for path in place.rglob("*") if path.is_file()}
    assert files == {"config.json": "{}", "1_Pooling/config.json": "[]"}
    assert [path.name for path in place.parent.iterdir()] == [place.name]
    monkeypatch.setattr(mpnet, "PARTS", ("not_installed",))
    assert find_model("mpnet") == place
    assert capsys.readouterr().err == ""


def test_without_its_packages_it_says_how_to_get_it(packages, monkeypatch):
    monkeypatch.setattr(mpnet, "PARTS", ("mpnet-test-part_1", "mpnet-test-part_3"))
    with pytest.raises(FinepruneError, match=r"^the model mpnet .* pip install 'fineprune\[mpnet\]' \(five"):
        find_model("mpnet")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"other", "its packages hold something else .*--force-reinstall"),
        (None, "mpnet-test-part_2 has no part"),
    ],
)
def test_damaged_packages_are_refused(packages, tmp_path, content, told):
    piece = packages / "mpnet-test-part_2" / "input" / "all-mpnet-base-v2.zip.002"
    piece.unlink() if content is None else piece.write_bytes(content)
    with pytest.raises(FinepruneError, match=told):
        find_model("mpnet")
    assert list((tmp_path / "cache" / "fineprune").iterdir()) == []
