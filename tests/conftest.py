import pytest

from tests.nursery import Nursery
from tests.policies import save_tiny_policy

LONGEST = ("test_training.py", "test_ddp.py")


def pytest_collection_modifyitems(items):
    """The longest files first, so that no worker is left alone with one of them at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """The folder of a random Qwen3 policy of 3 layers and 59 words."""
    return save_tiny_policy(tmp_path_factory.mktemp("tiny") / "policy")


@pytest.fixture(scope="session")
def nursery():
    nursery = Nursery()
    yield nursery
    nursery.close()
