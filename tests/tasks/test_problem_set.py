"""Where a dataset's rows come from, and the one line where they cannot."""

import datasets
import pytest

from rhythm.tasks.problem_set import ProblemSet
from tests.tasks.files import problem_set, write

ROWS = [
    {"question": f"{i} + {i}?", "reward_model": {"ground_truth": str(2 * i)}, "prompt": [{"content": f"say {i}"}]}
    for i in range(40)
]
COLUMNS = {"problem": "question", "answer": "reward_model.ground_truth", "said": "prompt.0.content"}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_columns_are_found_by_name_and_by_path(tmp_path, name):
    rows = problem_set(tmp_path / name, ROWS[:2], columns=COLUMNS).rows()
    assert rows == [
        {"problem": "0 + 0?", "answer": "0", "said": "say 0"},
        {"problem": "1 + 1?", "answer": "2", "said": "say 1"},
    ]
    assert problem_set(tmp_path / name, ROWS[:2]).rows() == ROWS[:2]


def test_a_column_whose_name_has_a_dot_is_found_before_a_path(tmp_path):
    rows = problem_set(tmp_path / "rows.jsonl", [{"a.b": 1, "a": {"b": 2}}], columns={"x": "a.b"}).rows()
    assert rows == [{"x": 1}]


def test_several_files_are_one_set_and_blank_lines_are_none(tmp_path):
    first = write(tmp_path / "a.jsonl", ROWS[:2])
    first.write_text(first.read_text() + "\n\n")
    second = write(tmp_path / "b.parquet", ROWS[2:4])
    assert ProblemSet(files=[str(first), str(second)]).rows() == ROWS[:4]


def test_parts_of_one_split_are_disjoint_complete_and_the_same_from_any_file(tmp_path):
    parts = {
        (name, part): problem_set(tmp_path / name, ROWS, columns=COLUMNS, part=part, test_share=0.25).rows()
        for name in ("rows.jsonl", "rows.parquet")
        for part in ("train", "test", "all")
    }
    for part in ("train", "test", "all"):
        assert parts["rows.jsonl", part] == parts["rows.parquet", part]
    train, test, everything = (parts["rows.jsonl", part] for part in ("train", "test", "all"))
    assert 0 < len(test) < len(train)
    assert [row for row in everything if row in train or row in test] == everything
    assert not [row for row in train if row in test]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"question": "2?"', "is no JSON (Expecting ',' delimiter"),
        ("question,answer", "is no JSON"),
        ("[1, 2]", "holds a list, not an object with named columns"),
        ("[" * 100_000, "is no JSON"),
        ('{"problem": "2?", "id": 7}', "there is no column question; there are problem, id"),
    ],
    ids=["cut", "csv", "list", "deep", "column"],
)
def test_a_broken_line_names_file_and_line(tmp_path, line, reason):
    file = tmp_path / "rows.jsonl"
    file.write_text(f'{{"question": "1?"}}\n{line}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2: ") as caught:
        ProblemSet(files=str(file), columns={"problem": "question"}).rows()
    assert reason in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_line_that_is_no_utf8_names_file_and_line(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"question": "1?"}\n{"question": "\xff"}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2: is no JSON"):
        ProblemSet(files=str(tmp_path / "rows.jsonl")).rows()


@pytest.mark.parametrize("path", ["answer", "reward_model.truth", "prompt.1.content", "prompt.first.content"])
def test_a_missing_column_names_those_that_there_are(tmp_path, path):
    source = problem_set(tmp_path / "rows.parquet", ROWS, columns={"problem": "question", "answer": path})
    with pytest.raises(ValueError, match=r"rows.parquet, row 0: there is no column ") as caught:
        source.rows()
    assert str(caught.value).endswith(f"no column {path}; there are question, reward_model, prompt")


def test_files_that_are_not_there_or_no_data(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"^there is no file {tmp_path}/rows.jsonl$"):
        ProblemSet(files=str(tmp_path / "rows.jsonl")).rows()
    (tmp_path / "rows.csv").write_text("question\n")
    with pytest.raises(ValueError, match=r"rows.csv: must be .jsonl, one JSON object a line, or .parquet"):
        ProblemSet(files=str(tmp_path / "rows.csv")).rows()
    whole = write(tmp_path / "rows.parquet", ROWS).read_bytes()
    (tmp_path / "rows.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"rows.parquet: is no whole Parquet file"):
        ProblemSet(files=str(tmp_path / "rows.parquet")).rows()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "need a dataset each: path=<its name on the hub> or files=<JSONL or Parquet>"),
        ({"path": "a/b", "part": "dev"}, "part=dev: use all, train or test"),
        ({"path": "a/b", "test_share": 1.0}, "test_share=1.0: must lie between 0 and 1"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        ProblemSet(**settings)


def test_a_hub_that_cannot_be_reached_names_the_dataset_and_the_way_without(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"^nobody/nothing main test cannot be loaded from the hub \(") as caught:
        ProblemSet(path="nobody/nothing", name="main", split="test").rows()
    assert "with a local copy, JSONL or Parquet, set task.train.files= or task.test.files=" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_hubs_rows_are_read_as_a_files_are(tmp_path, monkeypatch):
    """A folder stands where a name on the hub would: `datasets` loads both."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "dataset"
    folder.mkdir()
    file = write(folder / "train.jsonl", ROWS[:3])
    source = ProblemSet(path=str(folder), split="train", columns=COLUMNS)
    assert source.rows() == ProblemSet(files=str(file), columns=COLUMNS).rows()
    with pytest.raises(ValueError, match=r"row 0: there is no column answer; there are question, reward_model, prompt"):
        ProblemSet(path=str(folder), columns={"answer": "answer"}).rows()
