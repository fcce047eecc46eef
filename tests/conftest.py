import pytest

from tests.policies import save_tiny_policy


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """The folder of a random Qwen3 policy of 3 layers and 59 words."""
    return save_tiny_policy(tmp_path_factory.mktemp("tiny") / "policy")
