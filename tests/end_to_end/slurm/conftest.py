"""A real SLURM of one node, bound to the loopback interface, for as long as these tests take."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scancel", "srun")

CONF = """\
ClusterName=yxanul
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its credential has expired, by default for two minutes
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
PlugStackConfig={folder}/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
JobRequeue=1
ReturnToService=2
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs=3 RealMemory=1000 State=UNKNOWN
PartitionName=tests Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def pytest_collection_modifyitems(items):
    lacking = [name for name in PROGRAMS if not shutil.which(name)]
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in here:
        item.add_marker(pytest.mark.slurm)
        if lacking:
            item.add_marker(pytest.mark.skip(reason=f"needs a SLURM: {', '.join(lacking)} not installed"))
        elif os.geteuid():
            item.add_marker(pytest.mark.skip(reason="a SLURM of its own needs root"))


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """The folder of a running cluster; `SLURM_CONF` names it to SLURM's commands."""
    folder = tmp_path_factory.mktemp("slurm")
    for parent in (folder, folder.parent, folder.parent.parent):
        parent.chmod(0o755)  # munged trusts no socket in a folder that is closed to others
    for name, mode in {"munge": 0o711, "state": 0o755, "spool": 0o755}.items():
        (folder / name).mkdir()
        (folder / name).chmod(mode)
    key = folder / "munge" / "key"
    key.touch(0o600)
    key.write_bytes(os.urandom(1024))
    (folder / "plugstack.conf").touch()
    host = socket.gethostname().partition(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(folder=folder, host=host, ports=free_ports(2)))
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(conf)
    munge = {name: folder / "munge" / name for name in ("socket", "log", "seed")}
    try:
        subprocess.run(
            ["munged", "--force", "--num-threads=2", f"--key-file={key}", f"--pid-file={folder / 'munged.pid'}"]
            + [f"--{name}{'' if name == 'socket' else '-file'}={path}" for name, path in munge.items()],
            check=True,
        )
        subprocess.run(["slurmctld", "-c"], check=True)
        subprocess.run(["slurmd"], check=True)
        wait_until_idle(folder)
        yield folder
    finally:
        subprocess.run(["scancel", "--me"], capture_output=True)
        for name in ("slurmd", "slurmctld", "munged"):
            stop(name, folder / f"{name}.pid")
        os.environ.pop("SLURM_CONF")
        os.environ.update({"SLURM_CONF": before} if before else {})


def wait_until_idle(folder: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        done = subprocess.run(["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True)
        if done.stdout.strip() == "idle":
            return
        said = "".join(path.read_text() for path in folder.glob("*.log"))
        assert time.monotonic() < deadline, said[-3000:]
        time.sleep(0.1)


def stop(name: str, pid_file: Path) -> None:
    if not pid_file.exists():
        return
    process = int(pid_file.read_text())
    try:
        if Path(f"/proc/{process}/comm").read_text().strip() != name:
            return
        os.kill(process, signal.SIGTERM)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and Path(f"/proc/{process}").exists():
            time.sleep(0.05)
    except (FileNotFoundError, ProcessLookupError):
        pass


@pytest.fixture
def job_ids():
    """The ids of the jobs that a launcher said it had submitted."""
    return lambda out: re.findall(r": job (\d+), log ", out)
