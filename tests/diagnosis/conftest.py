"""A machine without anything, what can be put into it, and the doctor that looks at it."""

import functools
from types import SimpleNamespace

import hydra
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from yxanul.composition import config_dir, parse, register
from yxanul.config import Config
from yxanul.diagnosis import composed
from yxanul.diagnosis.diagnose import diagnose

from .pretence import NO_DRIVER, installed, programs, raising


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch, tmp_path):
    """A machine without a GPU, libraries, keys or files, wherever the tests run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", raising(RuntimeError(f"{NO_DRIVER}\nDownload one.")))
    installed(monkeypatch)
    programs(monkeypatch, tmp_path)


@pytest.fixture
def gpu(monkeypatch):
    """Puts a GPU into the machine: `gpu(8.0)` of that compute capability."""

    def put(capability: float = 9.0, cuda: str = "12.9", name: str = "NVIDIA Something") -> None:
        major, minor = divmod(round(capability * 10), 10)
        properties = SimpleNamespace(name=name, major=major, minor=minor, total_memory=80 * 2**30)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "init", lambda: None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, minor))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(composed, "try_device", lambda device: None)

    return put


@pytest.fixture(scope="module")
def change(tiny_run):
    """The tiny run with more overrides; it is composed once for each choice of groups, which takes most of the time."""

    @functools.cache
    def composed(*choices: str) -> DictConfig:
        register()
        with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
            return hydra.compose("train", overrides=[*tiny_run, *choices])

    def changed(*overrides: str) -> Config:
        choices = [each for each in overrides if (config_dir() / each.partition("=")[0]).is_dir()]
        keys = [each for each in overrides if each not in choices]
        return parse(OmegaConf.merge(composed(*choices), OmegaConf.from_dotlist(keys)))

    return changed


@pytest.fixture
def look(change, tmp_path):
    """Diagnoses the tiny run with more overrides."""
    return lambda *overrides: diagnose(change(*overrides), tmp_path / "outputs" / "run")
