"""A machine as the tests want it, and what the doctor says about it."""

import importlib.metadata
from pathlib import Path

from yxanul.diagnosis import machine
from yxanul.diagnosis.findings import Finding, problems

NO_DRIVER = "Found no NVIDIA driver on your system."


def raising(error: Exception):
    def fail(*_, **__):
        raise error

    return fail


def installed(monkeypatch, **versions: str) -> None:
    """Of the libraries, those alone are here, by distribution with underscores."""
    real = importlib.metadata.version

    def version(distribution: str) -> str:
        if distribution not in machine.LIBRARIES.values():
            return real(distribution)
        if distribution.replace("-", "_") in versions:
            return versions[distribution.replace("-", "_")]
        raise importlib.metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr(importlib.metadata, "version", version)


def programs(monkeypatch, folder: Path, **scripts: str) -> None:
    """The only programs in the path, as scripts of the shell."""
    (folder / "bin").mkdir(exist_ok=True)
    for name, script in scripts.items():
        program = folder / "bin" / name.replace("_", "-")
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder / "bin"))
    monkeypatch.delenv("CXX", raising=False)


def of(findings: list[Finding], topic: str, subject: str) -> Finding:
    [found] = [finding for finding in findings if (finding.topic, finding.subject) == (topic, subject)]
    return found


def said(findings: list[Finding], topic: str, subject: str) -> tuple[str, str]:
    found = of(findings, topic, subject)
    return found.state.value, found.words


def the_problem(findings: list[Finding]) -> str:
    [problem] = problems(findings)
    return problem.words
