"""Shared by all tests: no cache of the user's is touched, and GPU tests are skipped where there is no GPU."""

import os
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """A cache folder for the whole session, so that tokenizers and tokens are made once."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["YXANUL_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def shared():
    """The folder of real text and tokenizers beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("the shared data folder is not beside this checkout")
    return SHARED
