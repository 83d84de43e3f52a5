"""A page that fails costs nothing but itself."""

import pytest

from fineprune import FinepruneError
from fineprune.study import report
from fineprune.study.report import leave_page


def test_the_page_is_written_and_said(tmp_path, capsys):
    said: list[str] = []
    leave_page(tmp_path, said.append)
    assert said == [f"page: {tmp_path / 'report.html'}"]
    assert (tmp_path / "report.html").is_file()
    leave_page(tmp_path)
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FinepruneError("x: cannot be written"), "x: cannot be written"),
        (ValueError("a\nb"), "ValueError: a b"),
        (MemoryError(), "MemoryError: MemoryError"),
    ],
)
def test_whatever_goes_wrong_is_a_line(tmp_path, capsys, monkeypatch, error, said):
    def fail(folder):
        raise error

    monkeypatch.setattr(report, "write_report", fail)
    leave_page(tmp_path, print)
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", f"fineprune: no page: {said}\n")


def test_an_interrupt_is_one(tmp_path, monkeypatch):
    def stop(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "write_report", stop)
    with pytest.raises(KeyboardInterrupt):
        leave_page(tmp_path)
