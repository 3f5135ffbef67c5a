"""Fixtures that several rooms' tests share."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from tests.fixtures.s3 import S3Server, moto_server, radosgw_server

# Everything here is tiny: a second thread costs more than it does, and more still beside other work.
torch.set_num_threads(1)

# What is imported and collected stays.
gc.disable()

# Time decides no test. A developer's runs explore; whether a change lands must not depend on what was drawn.
settings.register_profile("exploring", deadline=None)
settings.register_profile("landing", deadline=None, derandomize=True)
settings.load_profile("landing" if os.environ.get("CI") else "exploring")


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that holds a tiny ChatML tokenizer with its chat template."""
    from tests.fixtures.tokenizers import tiny_tokenizer

    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir: Path) -> Any:
    """The tokenizer of `tokenizer_dir`, loaded."""
    from deepspec.data.chat.tokenizer import load_tokenizer

    return load_tokenizer(tokenizer_dir)


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    """moto's S3 server, with an empty bucket."""
    with moto_server() as server:
        yield server


@pytest.fixture(scope="session")
def radosgw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Ceph's S3 gateway, with an empty bucket."""
    with radosgw_server(tmp_path_factory.mktemp("radosgw")) as server:
        yield server


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", action="store_true", help="rewrite golden files instead of comparing with them")


def pytest_collection_finish() -> None:
    """From here on there is garbage; who looks for it passes over all that was imported: half a second each time."""
    gc.freeze()
    gc.enable()
