"""What the commands of folders do where nobody reads on."""

import signal
import subprocess
import sys

TALKS = """
import sys
from yxanul.command import run_command
sys.exit(run_command(lambda: [print("x" * 1000) for _ in range(1000)]))
"""


def test_a_reader_who_has_seen_enough_is_no_error():
    """As `python -m yxanul.generate RUN "text" | head -3`."""
    process = subprocess.Popen([sys.executable, "-c", TALKS], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 128 + signal.SIGPIPE)
