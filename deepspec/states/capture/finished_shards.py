"""Which shards of a capture are finished: each lies in the work folder, with a record of its checksum."""

from pathlib import Path

from deepspec.atomic_write import write_text
from deepspec.config import Section
from deepspec.states.capture.survey import Survey
from deepspec.states.format.layout import Shard
from deepspec.store.reading.pieces import sha256_of


class Finished(Section):
    """Says that a shard in a work folder is whole: its bytes when it was written.

    Only this deepspec and its successor in the same home read it, and what it does not understand is made again: it
    needs no format.
    """

    shard: Shard
    size: int
    sha256: str

    @staticmethod
    def path(work: Path, file: str) -> Path:
        return work / f"{file}.json"

    def write(self, work: Path) -> None:
        """Create the record; before that the shard does not count."""
        write_text(self.path(work, self.shard.file), self.model_dump_json(by_alias=True))


def is_finished(work: Path, shard: Shard) -> bool:
    """Whether a shard lies whole in a work folder: all of its bytes are read and compared with its record."""
    path = work / shard.file
    try:
        record = Finished.model_validate_json(Finished.path(work, shard.file).read_text(encoding="utf-8"))
        return record.shard == shard and path.stat().st_size == record.size and sha256_of(path) == record.sha256
    except (OSError, ValueError):
        return False


def finished_tokens(survey: Survey, work: Path) -> int:
    """Tokens of the shards that have a record in a work folder; nothing is read."""
    shards = (survey.shard(number) for number in range(survey.places.num_shards))
    return sum(shard.num_tokens for shard in shards if Finished.path(work, shard.file).exists())
