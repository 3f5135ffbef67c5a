"""What a person sees while a run goes on: a line at once, and then no silence."""

import io
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from flows.cli import heartbeat, progress, terminal
from tasks.runtime.records import StageRecord


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """A plain display and the lines it has printed."""

    def __init__(self) -> None:
        self._file = io.StringIO()
        self.clock = Clock()
        self.display = progress.PlainDisplay(Console(file=self._file, width=80), self.clock)

    def lines(self) -> list[str]:
        return self._file.getvalue().splitlines()

    def wait(self, seconds: float, look: float = 0.5) -> list[float]:
        """Let time pass as it does for the display's thread; the times at which a line came."""
        times, until = [], self.clock.now + seconds
        while self.clock.now < until:
            self.clock.now += look
            before = len(self.lines())
            self.display.break_silence()
            times += [self.clock.now] * (len(self.lines()) - before)
        return times


def gaps(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]


def test_no_silence_is_longer_than_five_seconds_in_whatever_a_run_does() -> None:
    watched = Watched()
    times = [watched.clock.now]
    times += watched.wait(30)  # servers, imports
    assert len(times) > 5
    told = watched.display.stage("train")
    times += watched.wait(20)  # a stage that has not said yet how much it is
    told.start(1000, "steps")
    told.advance(7)
    times += watched.wait(20)
    assert "train: 7 of 1000 steps" in watched.lines()[-1]
    watched.display.done(StageRecord("train", "ran", 40.0, "train", "", ""))
    times += [watched.clock.now, *watched.wait(20)]
    assert "train" not in watched.lines()[-1]
    assert max(gaps(times)) <= 5.0


def test_what_speaks_by_itself_is_not_talked_over() -> None:
    watched = Watched()
    for _ in range(20):
        watched.display.say("a line")
        assert watched.wait(2.5) == []


def test_the_log_of_a_run_of_hours_stays_short() -> None:
    watched = Watched()
    watched.wait(2000)
    before = len(watched.lines())
    watched.wait(3600, look=1.0)
    assert len(watched.lines()) - before <= 3600 / 15


def test_silence_is_broken_by_a_thread_of_the_displays_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LOOK_SECONDS", 0.001)
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.0)
    file = io.StringIO()
    with progress.display_on(Console(file=file)) as display:
        display.stage("train").start(3, "steps")
        while "train: 0 of 3 steps" not in file.getvalue():
            time.sleep(0.001)
    said = file.getvalue()
    time.sleep(0.02)
    assert file.getvalue() == said


def test_a_terminal_shows_that_something_happens_before_between_and_in_stages() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)

    def shown() -> str:
        file.truncate(0)
        bar.refresh()
        return file.getvalue()

    with progress.display_on(console) as display:
        assert isinstance(display, progress.TerminalDisplay)
        bar = display._progress
        assert progress._STARTING in shown()
        told = display.stage("train")
        assert "train" in shown()
        told.start(30, "steps")
        told.advance(7)
        assert "7/30" in shown().replace(" ", "")
        display.done(StageRecord("train", "ran", 40.0, "train", "", ""))
        after = shown()
        assert progress._BETWEEN_STAGES in after
        assert "7/30" not in after.replace(" ", "")


def test_the_first_line_comes_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from importlib.abc import MetaPathFinder\n"
        "class Stop(MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name in ('torch', 'prefect', 'mlflow', 'pyarrow', 'transformers', 'deepspec.recipe'):\n"
        "            sys.exit(77)\n"
        "sys.meta_path.insert(0, Stop())\n"
        "from flows.cli import main as cli\n"
        "sys.argv = ['deepspec', 'demo']\n"
        "cli.app(standalone_mode=False)\n"
    )
    environment = {**os.environ, "DEEPSPEC_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 77
    assert str(tmp_path) in done.stderr.splitlines()[0]


class Beating:
    """A heartbeat, its clock, and the times at which it spoke."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.times: list[float] = [self.clock.now]
        self.heart = heartbeat.Heartbeat("verify", lambda _: self.times.append(self.clock.now), self.clock)

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.2)):
            self.clock.now += 0.2
            self.heart.beat()


def test_a_command_speaks_within_a_second_and_is_never_silent_for_five() -> None:
    beating = Beating()
    beating.wait(60)
    assert beating.times[1] - beating.times[0] <= 1.0
    assert max(gaps(beating.times)) <= 5.0


def test_a_heartbeat_leaves_a_display_alone_and_goes_on_after_it() -> None:
    beating = Beating()
    beating.heart.said()
    beating.wait(3)
    with beating.heart.elsewhere():
        beating.wait(30)
    assert len(beating.times) == 1
    ended = beating.clock.now
    beating.wait(20)
    assert 0 < beating.times[1] - ended <= 5.0


def test_what_the_terminal_prints_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    beating = Beating()
    monkeypatch.setattr(heartbeat, "_current", beating.heart)
    for say in (
        lambda: terminal.note("a line"),
        lambda: terminal.show_lines("a line"),
        lambda: terminal.show_table(("a",), (("b",),)),
        lambda: terminal.print_text("a text"),
    ):
        beating.wait(10)
        spoken = len(beating.times)
        say()
        beating.wait(3)
        assert len(beating.times) == spoken


@pytest.mark.parametrize("slow", ["at the start", "at the end"])
def test_every_command_has_one_from_before_its_imports_until_its_process_has_ended(slow: str) -> None:
    code = (
        "import sys, time, atexit\n"
        "from flows.cli import main as cli\n"
        "def wait(*_):\n"
        "    print('WAITING', file=sys.stderr, flush=True)\n"
        "    time.sleep(2)\n"
        "cli.heartbeat._QUIET_SECONDS = 0.5\n"
        "if sys.argv[1] == 'at the end':\n"
        "    atexit.register(wait)\n"
        "else:\n"
        "    cli.ask_this_machine_directly = wait\n"
        "sys.argv = ['deepspec', 'guide', 'demo']\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, slow], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "guide demo" in done.stderr.partition("WAITING")[2]
