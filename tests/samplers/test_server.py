"""What becomes of the calls of a server that is slow, busy, somewhere else or something else."""

import socket
import subprocess
import sys
import threading
import time

import pytest

from rhythm.samplers.server import VLLMServer
from tests.samplers.server import Refusal, Server

TWO = """
import sys, time
from rhythm.samplers.server import VLLMServer
from rhythm.samplers.vllm import complete_all

start = time.monotonic()
try:
    complete_all(VLLMServer(sys.argv[1]), [{"seed": 0}, {"seed": 1}])
except ValueError as error:
    print(time.monotonic() - start, error)
"""


@pytest.fixture(scope="module")
def answering():
    """One server; `answer(method, path, body)` is what a test makes of it."""
    server = Server()
    yield server
    server.close()


def completing(server, *outcomes):
    """Completions come out as each of these says, in turn: seconds to take, or a code to be refused with."""
    left = list(outcomes)

    def answer(method, path, body):
        outcome = left.pop(0) if left else 0.0
        if isinstance(outcome, int):
            raise Refusal(outcome, "not now")
        time.sleep(outcome)
        return {"path": path}

    server.answer = answer
    return left


@pytest.mark.parametrize("code", [429, 502, 503, 504])
def test_a_server_that_is_busy_is_asked_again(answering, code):
    left = completing(answering, code, code)
    assert VLLMServer(answering.url, patience=5).complete({}) == {"path": "/v1/completions"}
    assert not left


def test_patience_begins_with_the_first_failure_however_long_the_answer_took(answering):
    completing(answering, 0.7, 0.0)
    answering.dropped = 1
    assert VLLMServer(answering.url, patience=0.5).complete({}) == {"path": "/v1/completions"}


def test_an_answer_that_takes_too_long_is_told_with_the_key_that_waits_longer(answering):
    server = VLLMServer(answering.url, timeout=0.3, patience=0.2)
    completing(answering, 1.0, 1.0)
    with pytest.raises(ConnectionError, match=r"sampler.timeout=0.3: .*/v1/completions takes longer; .* group_size"):
        server.complete({})
    with pytest.raises(ConnectionError, match=r"sampler.patience=0.2: .*/v1/models takes longer; raise it$"):
        server.models()


def test_the_server_of_these_tests_says_nothing_where_who_asked_has_stopped_waiting(answering, capfd):
    asked = threading.Event()
    answered = threading.Event()

    def answer(method, path, body):
        asked.set()
        answered.wait(10)
        return "x" * 10_000_000  # more than the two ends hold, so that writing fails

    answering.answer = answer
    before = set(threading.enumerate())
    with socket.create_connection(("127.0.0.1", answering.http.server_port)) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert asked.wait(10)
        (handler,) = set(threading.enumerate()) - before
    answered.set()
    handler.join(10)
    assert not handler.is_alive()
    assert capfd.readouterr().err == ""


def test_a_connection_that_takes_too_long_is_none(answering):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:  # nobody accepts them, and the next one does not even connect
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        server = VLLMServer(f"http://127.0.0.1:{full.getsockname()[1]}", timeout=0.2, patience=0.2)
        with pytest.raises(ConnectionError, match=r"sampler.url=.*: no answer to /v1/completions \(timed out\)"):
            server.complete({})
        for client in waiting:
            client.close()


def test_a_proxy_of_the_environment_is_not_asked(answering, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    completing(answering)
    assert VLLMServer(answering.url, patience=0.2).complete({}) == {"path": "/v1/completions"}


OTHERS = [[], "models", {"data": None}, {"data": [{"id": "gpt"}]}, {"data": [{"id": "gpt", "root": "gpt"}]}]


@pytest.mark.parametrize("answer", OTHERS, ids=str)
def test_a_list_of_models_by_another_program_is_told(answering, answer):
    answering.answer = lambda method, path, body: answer
    with pytest.raises(ValueError, match=r"sampler.url=.*: another list of models to /v1/models: no vLLM server"):
        VLLMServer(answering.url).models()


@pytest.mark.parametrize("answer", [{}, [], {"vllm_config": "text"}], ids=str)
def test_settings_that_are_not_told_are_missed_in_one_line(answering, answer):
    answering.answer = lambda method, path, body: answer
    with pytest.raises(ValueError, match=r"sampler.url=.*: no logprobs_mode to /server_info; start .*DEV_MODE=1"):
        VLLMServer(answering.url).logprobs_mode()


def test_what_is_refused_is_told_in_the_servers_words(answering):
    server = VLLMServer(answering.url)
    completing(answering, 500, 500)
    with pytest.raises(ValueError, match=r"sampler.url=http.*: /v1/unload_lora_adapter is refused: not now; "):
        server.unload("rhythm-1")
    with pytest.raises(ValueError, match=r"sampler.url=http.*: /reset_prefix_cache is refused: not now; "):
        server.reset_prefix_cache()


def test_one_refusal_is_told_at_once_and_the_process_ends_whatever_else_is_under_way(answering):
    def answer(method, path, body):
        time.sleep(0.2 if body["seed"] else 60)
        raise Refusal(500, "the second is refused")

    answering.answer = answer
    done = subprocess.run([sys.executable, "-c", TWO, answering.url], capture_output=True, text=True, timeout=200)
    seconds, _, line = done.stdout.partition(" ")
    assert float(seconds) < 2
    assert "the second is refused" in line
