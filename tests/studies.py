"""Studies with rows that nothing was trained for."""

import yaml

from rhythm.evaluation.studies import FIELDS, Study

ARMS = ("uniform", "coupled", "shuffled_coupled", "anchor")


def describe(folder, **changes):
    """Writes a study.yaml."""
    folder.mkdir(exist_ok=True)
    content = {
        "arms": {arm: [f"experiment={arm}"] for arm in ARMS},
        "seeds": [0, 1],
    }
    if "arms" not in changes:
        content["baseline"] = "uniform"
        content["primary"] = [["coupled", "uniform"], ["coupled", "shuffled_coupled"]]
        content["secondary"] = [["anchor", "shuffled_coupled"]]
    (folder / "study.yaml").write_text(yaml.safe_dump(content | changes, sort_keys=False))


def described(folder, **changes):
    """A study without rows."""
    describe(folder, **changes)
    return Study.load(folder)


def row(arm, seed, iteration, score, **others):
    named = {"credit": arm, "seed": str(seed), "iteration": str(iteration), "pass@1": f"{score:.4f}", "n": "512"}
    return {name: (named | others).get(name, "") for name in FIELDS}
