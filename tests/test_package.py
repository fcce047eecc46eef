"""The package's face, and the policy that comes with it."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.utils import instantiate
from safetensors import safe_open

import rhythm
from rhythm.evaluation.evaluate import evaluate
from rhythm.policy import Policy
from tests.test_configs import composed

ASSETS = Path(rhythm.__file__).parent / "assets"
TINY = ASSETS / "tiny_countdown"
WITHOUT_NETWORK = """
import socket

def refuse(*args, **kwargs):
    raise OSError("the network is unreachable")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained({path!r}), AutoTokenizer.from_pretrained({path!r})
inputs = tokenizer("numbers : 3 10 4 target : 43 .", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=200, do_sample=False)[0], skip_special_tokens=True))
"""


def in_a_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_neither_lightning_nor_hydra():
    heavy = in_a_process(
        "import sys, rhythm; rhythm.attention_signals, rhythm.AnchorCredit;"
        "print([name for name in ('lightning', 'hydra', 'peft', 'datasets') if name in sys.modules])"
    )
    assert heavy.strip() == "[]"


def test_every_public_name_is_there_and_others_are_not():
    assert all(getattr(rhythm, name) is not None for name in rhythm.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = rhythm.nothing


def test_the_embedded_policy_loads_by_transformers_alone_without_a_network():
    text = in_a_process(WITHOUT_NETWORK.format(path=str(TINY)))
    assert text.startswith("numbers : 3 10 4 target : 43 .")
    assert "my answer is" in text


def test_the_embedded_policy_is_small():
    with safe_open(TINY / "model.safetensors", "pt") as weights:
        parameters = sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    assert 1e6 <= parameters <= 4e6
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) <= 10e6
    assert (TINY / "README.md").is_file()


def test_the_embedded_policy_has_room_to_learn_and_nothing_cheap_to_learn():
    task = instantiate(composed().task, _convert_="all")
    problems = task.held_out(64)
    metrics = evaluate(Policy("embedded:tiny_countdown"), task, problems, max_completion_tokens=200).metrics()
    assert 0.15 <= metrics["eval/pass@1"] <= 0.35
    assert metrics["eval/pass@8"] >= 0.55
    assert metrics["eval/parsed"] >= 0.95
    assert metrics["eval/truncated"] <= 0.05
    assert 60 <= metrics["eval/mean_length"] <= 150
