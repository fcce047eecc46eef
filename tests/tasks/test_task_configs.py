"""Every task's YAML on local stand-ins with the columns of its datasets on the hub, and what the README says of it."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from rhythm.doctor import check_verifier
from rhythm.tasks.dataset import DatasetTask
from tests.tasks.files import write

ROOT = Path(__file__).parents[2]
TASKS = sorted(path.stem for path in (ROOT / "configs/task").glob("*.yaml"))
HELD_OUT = ["aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench"]
BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."
ZEBRA = {"header": ["House", "Name"], "rows": [["1", "Eric"], ["2", "Arnold"]]}
CROSSTHINK = {"reward_model": {"style": "rule", "ground_truth": "B"}, "meta_data": {"question": "Q11", "index": 3}}
TURNS = [{"content": "?", "role": "user"}]
# A row of each dataset with its columns on the hub, and how the task reads its answer.
ROWS = {
    "gsm8k_train": ({"question": "Q1", "answer": "60 + 12 = <<60+12=72>>72.\n#### 72"}, "72"),
    "gsm8k_test": ({"question": "Q2", "answer": "So 5.\n#### 5"}, "5"),
    "math_train": ({"problem": "Q3", "level": "Level 5", "solution": "$\\boxed{\\frac12}$.", "type": "?"}, "\\frac12"),
    "math500": ({"problem": "Q4", "solution": "?", "answer": "\\pi", "subject": "Algebra", "level": 2}, "\\pi"),
    "dapo_math": ({"prompt": "Q5", "solution": "34", "data_source": "math_dapo", "source_prompt": TURNS}, "34"),
    "aime24": ({"id": 60, "problem": "Q6", "solution": "?", "answer": "204", "url": "", "year": "2024"}, "204"),
    "aime25": ({"problem": "Q7", "answer": "70", "id": "0"}, "70"),
    "amc23": ({"id": 0, "question": "Q8", "answer": "27.0", "url": ""}, "27.0"),
    "olympiadbench": ({"question": "Q9", "solution": ["?"], "final_answer": ["$2$", "$3$"], "unit": None}, "2, 3"),
    "minerva": ({"question": "Q10", "answer": "4.5e33"}, "4.5e33"),
    "crossthink_qa_train": ({"prompt": TURNS, **CROSSTHINK}, "B"),
    "zebra_logic_train": ({"id": "lgp-test-2x1-1", "size": "2*1", "puzzle": "Q12", "solution": ZEBRA}, None),
}


def composed(*overrides):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("train", overrides=["output_dir=out", *overrides]).task


def on_stand_ins(folder, *overrides, **sets):
    """A task from its config on files of one row; a dataset that has one split only is given as two files."""
    cfg = composed(*overrides)
    for role, name in sets.items():
        cfg[role].files = [str(write(folder / f"{role}.jsonl", [ROWS[name][0]]))]
        cfg[role].part = "all"
    return instantiate(cfg, _convert_="all")


@pytest.mark.parametrize(
    ("task", "train", "test"),
    [("gsm8k", "gsm8k_train", "gsm8k_test"), ("math", "math_train", "math500"), ("dapo_math", "dapo_math", "math500")]
    + [(name, "dapo_math", name) for name in HELD_OUT if name != "math500"],
)
def test_a_mathematical_task_reads_its_datasets_columns(tmp_path, task, train, test):
    made = on_stand_ins(tmp_path, f"task={task}", train=train, test=test)
    for problems, name in ((made.train_problems(), train), (made.test_problems(), test)):
        (problem,) = problems.to_list()
        answer = ROWS[name][1]
        assert problem["answer"] == answer
        assert re.fullmatch(r"Q\d+", problem["problem"])
        assert made.prompt(problem) == problem["problem"] + BOXED
        assert made.reward(problem, f"\\boxed{{{answer}}}") == 1.0


def test_any_held_out_set_evaluates_any_training_set(tmp_path):
    for test in HELD_OUT:
        made = on_stand_ins(tmp_path, "task=gsm8k", f"data@task.test={test}", train="gsm8k_train", test=test)
        assert made.test_problems()[0]["answer"] == ROWS[test][1]
        assert made.train_problems()[0]["answer"] == "72"


def test_other_tasks_read_their_datasets_columns(tmp_path):
    sets = {role: "crossthink_qa_train" for role in ("train", "test")}
    choice = on_stand_ins(tmp_path, "task=crossthink_qa", **sets)
    (problem,) = choice.test_problems().to_list()
    assert choice.prompt(problem).startswith("Q11" + BOXED)
    assert choice.reward(problem, "\\boxed{b}") == 1.0
    zebra = on_stand_ins(tmp_path, "task=zebra_logic", train="zebra_logic_train", test="zebra_logic_train")
    (problem,) = zebra.test_problems().to_list()
    assert zebra.prompt(problem).startswith("Q12\n\n")
    assert zebra.reward(problem, '{"solution": {"House 1": {"Name": "eric"}, "House 2": {"Name": "Arnold"}}}') == 1.0


def test_columns_are_a_matter_of_config(tmp_path):
    file = write(tmp_path / "own.parquet", [{"q": "1+1?", "a": "2"}])
    files = [f"task.{role}.files={file}" for role in ("train", "test")]
    columns = [f"task.{role}.columns={{problem: q, answer: a}}" for role in ("train", "test")]
    made = instantiate(composed("task=math", *files, *columns), _convert_="all")
    assert made.test_problems().to_list() == [{"problem": "1+1?", "answer": "2"}]


def test_a_split_that_is_divided_is_held_out_by_the_same_share():
    for task in ("crossthink_qa", "zebra_logic"):
        train, test = (OmegaConf.to_container(composed(f"task={task}")[role]) for role in ("train", "test"))
        assert (train.pop("part"), test.pop("part")) == ("train", "test")
        assert train == test


def test_a_task_says_where_its_problems_come_from():
    named = {"task=math": ("DigitalLearningGmbH/MATH-lighteval train", "HuggingFaceH4/MATH-500 test")}
    crossthink = "nvidia/Nemotron-CrossThink train_qa"
    named["task=crossthink_qa"] = (f"{crossthink} (train part)", f"{crossthink} (test part)")
    named["task=countdown"] = ("20,000 generated, of 4 numbers", "512 by a hash of the problem")
    for task, origins in named.items():
        assert instantiate(composed(task), _convert_="all").origins() == origins


@pytest.mark.parametrize("task", TASKS)
def test_every_verifier_knows_its_known_answers(task):
    own = {"reasoning_gym": ["task.name=leg_counting", "task.test_size=2"]}
    own["custom"] = ["task.template=x", "task.rewards=[a.b]", "task.train.path=x", "task.test.path=x"]
    made = instantiate(composed(f"task={task}", *own.get(task, [])), _convert_="all")
    rewards = {reward for _, _, reward in made.known_answers()}
    assert rewards == (set() if task == "custom" else {0.0, 1.0})
    check_verifier(made)
    if isinstance(made, DatasetTask) and task != "custom":
        assert {made.extract(text) for _, text, reward in made.known_answers() if reward} - {None}


def table():
    """The README's rows of tasks: name to its other cells."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", text.partition("## Tasks\n")[2].partition("\n## ")[0], re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}


def test_the_readme_lists_every_task_with_its_data_and_splits():
    listed = table()
    assert sorted(listed) == [name for name in TASKS if not name.startswith("countdown_")]
    for name, (train, test, answer, source) in listed.items():
        cfg = composed(f"task={name}")
        for role, cell in (("train", train), ("test", test)):
            data = OmegaConf.to_container(cfg).get(role)
            if data is None or data["path"] is None:
                continue
            if like := re.fullmatch(r"as `(\w+)`", cell):
                cell = listed[like[1]][0]
            dataset, split = re.fullmatch(
                r"\[([\w/.-]+)\]\(https://huggingface.co/datasets/\1\) (\w+)(?:,.*)?", cell
            ).groups()
            assert (dataset, split) == (data["path"], data["split"])
        assert answer
        assert source
