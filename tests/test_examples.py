"""The example files run as they are written."""

from pathlib import Path

import pytest
from support import example

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_plain_loop(save_body, capsys):
    assert example("plain_loop").main(save_body(), steps=20) == pytest.approx(0.10, abs=1e-3)
    assert "density 100.0%" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["quickstart", "comparing-methods"])
def test_notebook(name, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # of the kernel, which is a process of its own
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    book = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in book.cells)
    NotebookClient(book, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(output.get("text", "") for cell in book.cells for output in cell.get("outputs", []))
    if name == "quickstart":
        assert "MB, dense 90.9 MB" in printed
    else:
        assert {path.name for path in (tmp_path / "runs").iterdir()} > {"dense", "movement"}
