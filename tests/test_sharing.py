"""Cards, merged weights, and the hub, which here is a server of the few addresses that pushing asks for."""

import base64
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from peft.tuners.lora import LoraModel

from rhythm.callbacks.evaluation import HeldOutEvaluation
from rhythm.callbacks.export import Export
from rhythm.policy import Policy
from rhythm.sharing import check_login, divergence, merge, push
from tests.bases import save_base
from tests.policies import perturb
from tests.training import run

PROMPTS = ["Using the numbers 3 5 7, make 22.", "so the answer"]
COMMAND = "python train.py experiment=anchor seed=0"


@torch.no_grad()
def logits(model, texts, tokenizer):
    return model(**tokenizer(texts, return_tensors="pt")).logits


def base(folder, name="llama3", **settings):
    if not folder.exists():
        save_base(folder, name)
    return Policy(str(folder), **({"rank": 4, "alpha": 8} | settings))


# ---- merged weights


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-5), ("bfloat16", 0.1)])
def test_merged_weights_are_the_adapted_model_in_a_new_folder(tmp_path, dtype, atol):
    policy = perturb(base(tmp_path / "base", dtype=dtype), scale=0.1)
    before = logits(policy.model, PROMPTS[0], policy.tokenizer)
    kl = merge(policy, tmp_path / "merged", PROMPTS)
    assert torch.equal(logits(policy.model, PROMPTS[0], policy.tokenizer), before)
    alone = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert alone.dtype == getattr(torch, dtype)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    found = logits(alone, PROMPTS[0], tokenizer)
    torch.testing.assert_close(found, before, atol=atol, rtol=0)
    with policy.reference():  # which differs from both by a hundred times as much
        far = divergence(before, logits(policy.model, PROMPTS[0], policy.tokenizer)).mean()
    assert 0 <= kl < far / 100
    with pytest.raises(FileExistsError, match=r"merged is there already; merged weights go into a new folder"):
        merge(policy, tmp_path / "merged", PROMPTS)


def test_weights_that_do_not_agree_with_the_adapter_are_told(tmp_path, monkeypatch):
    policy = perturb(base(tmp_path / "base"), scale=0.1)
    monkeypatch.setattr(LoraModel, "merge_and_unload", lambda model, **_: model.unload())  # forgets it
    with pytest.raises(ValueError, match=r"merged weights differ from the adapter by .* share the adapter instead"):
        merge(policy, tmp_path / "merged", PROMPTS)


def test_there_is_nothing_to_merge_where_every_weight_is_trained(tmp_path):
    with pytest.raises(ValueError, match=r"callbacks.export.merged=true: every weight is trained already"):
        merge(base(tmp_path / "base", full=True), tmp_path / "merged", PROMPTS)


def test_the_divergence_of_two_coins():
    fair, loaded = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert divergence(fair, loaded).item() == pytest.approx(expected)


# ---- the card


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of a run that exported."""
    folder = tmp_path_factory.mktemp("run")
    evaluation = HeldOutEvaluation(every=9, problems=3, samples=8)
    export = Export(str(folder), command=COMMAND, merged=True)
    run(callbacks=[evaluation, export], max_completion_tokens=30, prompts=2)
    return folder


def test_the_card_says_what_the_adapter_is_and_what_it_scored(exported):
    card = ModelCard.load(exported / "adapter" / "README.md")
    data, text = card.data.to_dict(), card.text
    last = json.loads((exported / "metrics.json").read_text())["last"]
    assert data["library_name"] == "peft"
    assert {"rhythm", "grpo", "lora"} <= set(data["tags"])
    assert "base_model" not in data  # it is no name on the hub
    (result,) = data["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == round(last["metrics"]["eval/pass@1"], 4)
    assert result["metrics"][0]["args"] == {"problems": 3, "samples": 8}
    assert "3 held-out problems, 8 samples of each" in text
    low, high = last["intervals"]["eval/pass@1"]
    assert f"{last['metrics']['eval/pass@1']:.3f} [{low:.3f}, {high:.3f}] |\n" in text
    for line in (f"```bash\n{COMMAND}\n```", "| credit | uniform, in GRPO", "| base | `embedded:tiny_countdown` |"):
        assert line in text
    assert "| problems | 64 generated, of 3 numbers; held out: 512 by a hash of the problem |" in text
    assert result["dataset"]["name"] == "EasyCountdown: 512 by a hash of the problem"
    assert f"torch {torch.__version__.partition('+')[0]}" in text


def test_the_cards_own_lines_load_the_adapter(exported):
    code = ModelCard.load(exported / "adapter" / "README.md").text.partition("```python\n")[2].partition("```")[0]
    names = {}
    exec(code.replace("<here>", str(exported / "adapter")), names)
    merged = transformers.AutoModelForCausalLM.from_pretrained(exported / "merged").eval()
    ids = torch.tensor([[5, 17, 3, 40]])
    with torch.no_grad():
        torch.testing.assert_close(names["model"](ids).logits, merged(ids).logits, atol=1e-4, rtol=0)


# ---- the hub


class Hub(BaseHTTPRequestHandler):
    """Keeps the files of commits; `refusing` is the address that it denies."""

    files, made, refusing = {}, [], ""

    def do_GET(self):
        self.answer({"name": "me", "type": "user", "orgs": []})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if "/preupload/" in self.path:
            named = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": named})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                {
                    "commitUrl": f"{huggingface_hub.constants.ENDPOINT}/me/anchor/commit/0",
                    "commitOid": "0",
                    "success": True,
                }
            )
        else:
            self.made.append(json.loads(body))
            self.answer({"url": f"{huggingface_hub.constants.ENDPOINT}/me/anchor", "id": "me/anchor"})

    def answer(self, content):
        denied = bool(self.refusing) and self.refusing in self.path
        written = json.dumps({"error": "no"} if denied else content).encode()
        self.send_response(403 if denied else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(written)))
        self.end_headers()
        self.wfile.write(written)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_any")
    monkeypatch.setattr(Hub, "files", {})
    monkeypatch.setattr(Hub, "made", [])
    yield Hub
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_adapter_is_pushed_to_a_private_repository(hub, exported):
    check_login("me/anchor")
    assert push(exported / "adapter", "me/anchor").endswith("/me/anchor")
    assert hub.made[0]["visibility"] == "private"
    names = {path.name for path in (exported / "adapter").iterdir()}
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= names
    assert hub.files == {name: (exported / "adapter" / name).read_bytes() for name in names}


def test_a_hub_that_refuses_leaves_the_command_to_try_again(hub, exported, monkeypatch):
    monkeypatch.setattr(hub, "refusing", "/commit/")
    with pytest.raises(OSError, match=r"could not be pushed: .*403.*; try again: hf upload me/anchor .*adapter"):
        push(exported / "adapter", "me/anchor")
    with pytest.raises(OSError, match="could not be pushed"):
        push(exported / "adapter", "no such name")


def test_who_is_not_known_to_the_hub_is_told_before_training(hub, monkeypatch):
    monkeypatch.setattr(hub, "refusing", "/whoami")
    with pytest.raises(OSError, match=r"callbacks.export.push_to_hub=me/anchor: .*; run `hf auth login`"):
        run(callbacks=[HeldOutEvaluation(problems=1), Export("unused", push_to_hub="me/anchor")])
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"callbacks.export.push_to_hub=me/anchor: "):
        check_login("me/anchor")
