import csv
import os
import subprocess
import sys
from pathlib import Path

import yaml
from safetensors.torch import load_file

TINY = Path(__file__).parents[2] / "experiments" / "tiny_policy"


def test_a_recipe_gives_the_same_policy_however_many_processes_write_traces(tmp_path):
    recipe = yaml.safe_load((TINY / "recipe.yaml").read_text())
    recipe |= {"steps": 20, "batch_size": 2, "warmup": 1}
    recipe["model"] |= {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    recipe["difficulties"] = [each | {"train_size": 20} for each in recipe["difficulties"]]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for workers in ("0", "2"):
        command = [sys.executable, TINY / "pretrain.py", tmp_path / "recipe.yaml", "--output", tmp_path / workers]
        subprocess.run(
            [*command, "--workers", workers], check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    one, other = (load_file(tmp_path / workers / "model.safetensors") for workers in ("0", "2"))
    assert one["model.embed_tokens.weight"].shape == (227, 16)
    assert all(value.equal(other[name]) for name, value in one.items())
    ((header, *rows), again) = (list(csv.reader((tmp_path / w / "loss.csv").open())) for w in ("0", "2"))
    assert header == ["step", "loss"]
    assert [row[0] for row in rows] == ["20"]
    assert 3 < float(rows[0][1]) < 6  # ln 227 is 5.4
    assert [header, *rows] == again
    assert not (tmp_path / "loss.csv").exists()
