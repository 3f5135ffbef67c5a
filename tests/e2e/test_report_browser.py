"""The report in a real browser: it renders, asks for nothing, and complains about nothing."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Home

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
CLOSED = ("--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--v=0")


def browse(page: Path, folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    browser = shutil.which("chromium")
    assert browser is not None, "chromium is missing: infra/install_services.sh installs it"
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [browser, *FLAGS, *CLOSED, profile, *options, f"file://{page}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)


@pytest.mark.full
@pytest.mark.parametrize("width", [1280, 390])
def test_page_renders_without_console_errors(cold: Home, tmp_path: Path, width: int) -> None:
    page = Path(cold.record()["report"])
    shot = tmp_path / "page.png"
    done = browse(page, tmp_path, f"--window-size={width},2400", f"--screenshot={shot}", "--hide-scrollbars")
    assert shot.stat().st_size > 20_000
    assert "CONSOLE" not in done.stderr, done.stderr
    shown = browse(page, tmp_path, f"--window-size={width},2400", "--dump-dom").stdout
    assert "arithmetic" in shown
    assert "Verdict" in shown
    assert shown.count("<svg") >= 4
