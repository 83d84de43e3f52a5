import csv
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fineprune.errors import FinepruneError
from fineprune.tasks import tables
from fineprune.tasks.tables import read_hub, read_table

COLUMNS = ("text", "label")


def parquet(path: Path, **columns) -> str:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return str(path)


def one_line(error: pytest.ExceptionInfo[FinepruneError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


def test_tsv_quotes_are_plain_and_no_cell_is_guessed_at(write):
    path = write("a.tsv", 'id\ttext\tlabel\n1\t" open , NA\tNA\n2\t\tnull\n3\t1.0\t01\n')
    assert read_table(path, COLUMNS) == {"text": ['" open , NA', "", "1.0"], "label": ["NA", "null", "01"]}


def test_tsv_takes_a_byte_order_mark_windows_line_ends_and_blank_lines(write):
    path = write("a.TSV", "\ufefftext\tlabel\r\na b\t1\r\n\r\nc\t0\r\n\r\n")
    assert read_table(path, COLUMNS) == {"text": ["a b", "c"], "label": ["1", "0"]}


def test_tsv_splits_at_line_feeds_only(write):
    path = write("a.tsv", "text\tlabel\na\u2028b\x85c\x0cd\t1\n")
    assert read_table(path, ["text"]) == {"text": ["a\u2028b\x85c\x0cd"]}


def test_tsv_of_one_column_keeps_empty_rows(write):
    assert read_table(write("a.tsv", "text\na\n\nb\n"), ["text"]) == {"text": ["a", "", "b"]}


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"]), min_size=1), min_size=1
    )
)
def test_tsv_gives_back_any_text(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("tsv") / "a.tsv"
    path.write_bytes("".join(["text\tn\n", *(f"{text}\t1\n" for text in texts)]).encode())
    assert read_table(path, ["text"])["text"] == texts


def test_csv_has_ordinary_quoting_and_no_guessing(write):
    path = write("a.csv", 'label,text\nNA,"one, ""two""\nthree"\n,null\n')
    assert read_table(path, COLUMNS) == {"text": ['one, "two"\nthree', "null"], "label": ["NA", ""]}


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_long_cells_are_read_and_the_limit_of_csv_is_left_alone(write, name):
    usual, long = csv.field_size_limit(), "word " * 40_000
    rows = {
        "a.csv": f'text,label\n"{long}",a\nshort,b\n',
        "a.tsv": f"text\tlabel\n{long}\ta\nshort\tb\n",
        "a.jsonl": f'{{"text": "{long}", "label": "a"}}\n{{"text": "short", "label": "b"}}\n',
    }
    assert read_table(write(name, rows[name]), COLUMNS) == {"text": [long, "short"], "label": ["a", "b"]}
    assert csv.field_size_limit() == usual


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "text\tlabel\r\na\u2028\t1\nb\t2\r\n"),
        ("a.tsv", "\n\ntext\tlabel\na\u2028\t1\nb\t2"),
        ("a.tsv", "text\tlabel\ra\u2028\t1\rb\t2\r"),
        ("a.csv", "text,label\ra\u2028,1\rb,2\r"),
        ("a.csv", 'text,label\r\na\u2028,1\n"b",2'),
        ("a.jsonl", '{"text": "a\u2028", "label": "1"}\r\n{"text": "b", "label": "2"}\n'),
        ("a.jsonl", '{"text": "a\u2028", "label": "1"}\r{"text": "b", "label": "2"}\r'),
    ],
)
def test_line_ends_of_every_system(write, name, text):
    path = write(name, text)
    assert read_table(path, COLUMNS) == {"text": ["a\u2028", "b"], "label": ["1", "2"]}
    assert tables.column_names(Path(path)) == ["text", "label"]


def test_colas_own_files_have_no_header(write):
    text = 'gj04\t1\t\tThey drank.\ncj99\t0\t*\tThe more " does\n'
    expected = {"sentence": ["They drank.", 'The more " does'], "label": ["1", "0"]}
    assert read_table(write("a.tsv", text), ["sentence", "label"]) == expected
    with pytest.raises(FinepruneError, match="no column 'text'"):
        read_table(write("b.tsv", text), COLUMNS)
    named = "label\t1\t\tsentence\nx\t0\t*\ty\n"
    assert read_table(write("c.tsv", named), ["sentence", "label"]) == {"sentence": ["y"], "label": ["x"]}


@pytest.mark.parametrize(
    "row", ['{"text": "a \\ud83d", "label": 1}', '{"text": ["b", "a \\uDE00"], "label": 1}']
)
def test_half_of_a_surrogate_pair_names_the_line_and_the_column(write, row):
    path = write("a.jsonl", '{"text": "\\ud83d\\ude00", "label": 1, "other": "\\ud83d"}\n' + row + "\n")
    with pytest.raises(FinepruneError, match="line 2: column 'text' holds half of a surrogate pair"):
        read_table(path, COLUMNS)


def test_parquet_with_a_time_beyond_those_of_python(tmp_path):
    times = pyarrow.array([1 << 40], pyarrow.timestamp("s"))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "label": times}), tmp_path / "a.parquet")
    with pytest.raises(FinepruneError, match=r"a\.parquet: holds a value that cannot be read"):
        read_table(tmp_path / "a.parquet", COLUMNS)


def test_parquet_with_bytes_that_are_not_utf8(tmp_path):
    text = pyarrow.array([b"good", b"b\xe4d"]).cast("binary").view("string")
    with pytest.raises(FinepruneError, match=r"a\.parquet: holds text that is not UTF-8"):
        read_table(parquet(tmp_path / "a.parquet", text=text, label=[0, 1]), COLUMNS)


def test_jsonl_keeps_json_values(write):
    path = write("a.jsonl", '{"text": "a\\u2028", "label": 1, "x": 2}\n\n{"label": null, "text": 2.5}\n')
    assert read_table(path, COLUMNS) == {"text": ["a\u2028", 2.5], "label": [1, None]}


def test_parquet_keeps_integers_beside_nulls_and_text_called_na(tmp_path):
    path = parquet(tmp_path / "a.parquet", label=[1, None, 3], text=["NA", "", "x"])
    assert read_table(path, COLUMNS) == {"text": ["NA", "", "x"], "label": [1, None, 3]}
    assert [file.name for file in tmp_path.iterdir()] == ["a.parquet"]  # no cache beside it


def test_parquet_column_with_a_dot(tmp_path):
    path = parquet(tmp_path / "a.parquet", **{"a.b": ["x"], "a": ["y"]})
    assert read_table(path, ["a.b"]) == {"a.b": ["x"]}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[]", r"a\.json: cannot read .* \*\.json; .*name it a\.jsonl; known are \.tsv, \.csv"),
        ("a.txt", "text", r"\*\.txt; known are \.tsv, \.csv, \.jsonl, \.parquet"),
        ("a.tsv", "", r"a\.tsv: the file is empty"),
        ("a.tsv", "\ufeff\n\n", r"the file is empty"),
        ("a.csv", "", r"the file is empty"),
        ("a.jsonl", "\n", r"the file is empty"),
        ("a.tsv", "text\tlabel\n", r"a header but no rows"),
        ("a.csv", "text,label\n\n", r"a header but no rows"),
        (
            "a.tsv",
            "texts\tlabel\na\t1\n",
            r"no column 'text'; did you mean texts\? it has 'texts', 'label'",
        ),
        ("a.csv", "text, label\na,1\n", r"no column 'label'; it has ' label': remove the space from its"),
        ("a.csv", "text,label\na,1\ntext,label\n", r"a\.csv, line 3: is the header again; remove the line"),
        (
            "a.csv",
            "text;label\na, b;1\n",
            r"no column 'text'; the header is 'text;label', separated by ';', and fineprune reads commas in",
        ),
        (
            "a.csv",
            "text\tlabel\na\t1\n",
            r"separated by '\\t', and fineprune reads commas in \*\.csv and tabs",
        ),
        ("a.tsv", '"text","label"\na,1\n', r"separated by ','"),
        ("a.csv", '"text,label"\n"a,1"\n', r"'text,label': leave out the quotes around the lines"),
        ("a.csv", "Text;Label\na;1\n", r"separated by ';'"),
        ("a.jsonl", '{"a;b": 1}\n', r"it has 'a;b'"),
        ("a.csv", "q,r\na,1\n", r"no column 'text'; it has 'q', 'r'"),
        ("a.csv", "text,label,text\na,1,b\n", r"2 columns are named 'text'; rename all but one"),
        ("a.tsv", "text\tlabel\na\t1\nb\n", r"a\.tsv, line 3: 1 fields, the header has 2: 'text', 'label'"),
        ("a.tsv", "text\tlabel\n\na\tb\t1\n", r"a\.tsv, line 3: 3 fields"),
        ("a.csv", 'text,label\n"a\nb",1\nc,d,1\n', r"a\.csv, line 4: 3 fields"),
        (
            "a.csv",
            'text,label\n"a\nb",1\n"c,1\nd,2\n',
            r"a\.csv, line 4: .* is not CSV: unexpected end of data",
        ),
        ("a.csv", 'text,label\n"a"b,1\n', r"a\.csv, line 2: .* is not CSV"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": \n', r"a\.jsonl, line 2: not JSON: "),
        ("a.jsonl", "[1]\n", r"line 1: expected an object such as \{\"text\": …\}, got '\[1\]'"),
        (
            "a.jsonl",
            '{"text": "a", "label": 1}\n{"text": "b"}\n',
            r"line 2: no column 'label'; it has 'text'",
        ),
        ("a.jsonl", "[" * 100_000, r"line 1: not JSON"),
        ("a.parquet", "not parquet", r"a\.parquet: not a complete Parquet file: "),
        ("a.parquet", "", r"a\.parquet: not a complete Parquet file: "),
    ],
)
def test_a_bad_file_is_one_clear_line(write, name, text, message):
    with pytest.raises(FinepruneError, match=message) as error:
        read_table(write(name, text), COLUMNS)
    one_line(error)


def test_a_missing_file_a_folder_and_an_unreadable_name(tmp_path):
    with pytest.raises(FinepruneError, match=r"nothing\.tsv: no such file \(looked in /"):
        read_table(tmp_path / "nothing.tsv", COLUMNS)
    (tmp_path / "folder.tsv").mkdir()
    with pytest.raises(FinepruneError, match=r"folder\.tsv: is a folder; name a file in it"):
        read_table(tmp_path / "folder.tsv", COLUMNS)
    with pytest.raises(FinepruneError, match=r"cannot read a table from a file named \*;"):
        read_table(tmp_path, COLUMNS)


def test_an_operating_system_error_is_one_line(write, monkeypatch):
    path = write("a.tsv", "text\tlabel\na\t1\n")

    def denied(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(FinepruneError, match=r"a\.tsv: cannot be read: .*Permission denied"):
        read_table(path, COLUMNS)


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl"])
def test_text_that_is_not_utf8_names_the_line_and_the_byte(tmp_path, name):
    (tmp_path / name).write_bytes(b"text\tlabel\ncaf\xe9\t1\n")
    with pytest.raises(FinepruneError, match=r"line 2: byte 0xe9 is not UTF-8 text; save the file as UTF-8"):
        read_table(tmp_path / name, COLUMNS)


def test_parquet_that_is_cut_short_or_empty(tmp_path):
    whole = parquet(tmp_path / "a.parquet", text=["a"] * 100, label=[1] * 100)
    (tmp_path / "cut.parquet").write_bytes(Path(whole).read_bytes()[:-20])
    with pytest.raises(FinepruneError, match=r"cut\.parquet: not a complete Parquet file"):
        read_table(tmp_path / "cut.parquet", COLUMNS)
    with pytest.raises(FinepruneError, match=r"no column 'sentence'; it has 'text', 'label'"):
        read_table(whole, ["sentence"])
    with pytest.raises(FinepruneError, match=r"has no rows"):
        read_table(parquet(tmp_path / "b.parquet", text=pyarrow.array([], "string"), label=[]), COLUMNS)


def test_hub_gives_columns_and_the_names_of_class_labels(monkeypatch):
    import datasets

    features = datasets.Features(
        text=datasets.Value("string"),
        label=datasets.ClassLabel(names=["neg", "pos"]),
        n=datasets.Value("int32"),
    )
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0], "n": [7, 8]}, features=features)
    asked = []

    def load(name, subset, split):
        asked.append((name, subset, split))
        return table

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_hub("glue", "sst2", "train", ["label", "text"]) == (
        {"label": [1, 0], "text": ["a", "b"]},
        {"label": ("neg", "pos")},
    )
    assert read_hub("glue", None, "train", ["n"]) == ({"n": [7, 8]}, {})
    assert asked == [("glue", "sst2", "train"), ("glue", None, "train")]
    with pytest.raises(
        FinepruneError, match=r"glue/sst2\[train\]: no column 'sentence'; .*it has 'text', 'label', 'n'"
    ):
        read_hub("glue", "sst2", "train", ["sentence"])
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: table.select([]))
    with pytest.raises(FinepruneError, match=r"glue\[train\]: has no rows"):
        read_hub("glue", None, "train", ["text"])


def test_hub_that_cannot_be_reached_is_one_line():
    with pytest.raises(
        FinepruneError, match=r"nobody/nothing/x\[train\]: cannot be loaded from the hub: "
    ) as error:
        read_hub("nobody/nothing", "x", "train", COLUMNS)
    one_line(error)


def test_hub_failures_of_any_kind_are_one_line(monkeypatch):
    import datasets

    def fail(*args, **kwargs):
        raise ValueError('Unknown split "tran".\nShould be one of ["train"].')

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(FinepruneError, match=r'glue\[tran\]: .*: Unknown split "tran"\. Should be one of'):
        read_hub("glue", None, "tran", COLUMNS)


def test_names_of_splits():
    assert tables.hub_name("glue", "sst2", "train") == "glue/sst2[train]"
    assert tables.hub_name("imdb", None, "test[:10]") == "imdb[test[:10]]"


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("file", "column", "rows"),
    [
        ("sst2/train.tsv", "sentence", 67_349),
        ("sst2/dev.tsv", "sentence", 872),
        ("mrpc/train.tsv", "#2 String", 3_668),
        ("mrpc/dev.tsv", "#1 String", 408),
        ("mnli/train.jsonl", "premise", 9_888),
        ("mnli/dev.jsonl", "hypothesis", 3_119),
    ],
)
def test_real_files_have_the_rows_that_their_readme_says(realdata, file, column, rows):
    texts = read_table(realdata / file, [column])[column]
    assert len(texts) == rows
    assert all(isinstance(text, str) and text for text in texts)


@pytest.mark.realdata
def test_real_json_lines_equal_json(realdata):
    lines = (realdata / "mnli/dev.jsonl").read_text(encoding="utf-8").splitlines()
    labels = [json.loads(line)["label"] for line in lines]
    assert read_table(realdata / "mnli/dev.jsonl", ["label"])["label"] == labels
