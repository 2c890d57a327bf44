"""Everything that an exact resume needs, in one checksummed file; the one before is kept too."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import torch

from aicsd.errors import UserError, one_line
from aicsd.files import atomic_path
from aicsd.runs import RunFolder

FORMAT = 1
END_OF_ZIP = b"PK\x05\x06"
END_BYTES = 22
"""Length of the last record of a ZIP file without a comment; its last two bytes are 0."""
MARK = b"sha256:"
COMMENT_BYTES = len(MARK) + 2 * hashlib.sha256().digest_size


@dataclass
class RunState:
    """State of a run between two steps."""

    step: int = 0
    """Optimizer steps done."""
    best_miou: float = -1.0
    seconds: float = 0.0
    """Spent training so far, over all resumes."""
    teacher: dict[str, Any] = field(default_factory=dict)
    """Metrics of the teacher, measured before the first step."""
    skipped: int = 0
    """Steps that were skipped, for their loss was not finite."""


class Checkpoint(NamedTuple):
    """A checkpoint that was read."""

    state: RunState
    states: dict[str, Any]
    """State dicts by name."""
    damage: str | None
    """Reason why this is not the newest checkpoint; None if it is."""


def save_checkpoint(folder: RunFolder, state: RunState, states: dict[str, Any]) -> None:
    """Write ``last.pt`` with a checksum; the file that it replaces becomes ``previous.pt``.

    The SHA-256 of the file is its comment as a ZIP archive, so that ``torch.load`` reads it.

    Raises:
        UserError: the file cannot be written.
    """
    content = {"format": FORMAT, "progress": vars(state), **states}
    path = folder.checkpoint
    with (
        atomic_path(path, durable=True, previous=folder.previous) as temporary,
        temporary.open("wb") as file,
    ):
        hashing = _HashingFile(file)
        try:
            torch.save(content, cast(BinaryIO, hashing))
        except RuntimeError as error:  # PyTorch hides the error of the file behind its own
            raise hashing.error or UserError(f"cannot write {path}: {error}") from error
        comment = MARK + hashing.digest.hexdigest().encode()
        file.seek(-2, 2)
        file.write(len(comment).to_bytes(2, "little") + comment)


def load_checkpoint(folder: RunFolder) -> Checkpoint | None:
    """The newest sound checkpoint, or None if the run has none yet.

    Raises:
        UserError: only damaged ones.
    """
    problems: list[str] = []
    for path in (folder.checkpoint, folder.previous):
        if not path.is_file():
            problems.append(f"there is no checkpoint {path}")
            continue
        try:
            state, states = _load(path)
        except Exception as error:  # PyTorch raises whatever the damaged bytes lead it to
            problems.append(f"checkpoint {path} is damaged ({_reason(error)})")
            continue
        if not problems:
            return Checkpoint(state, states, None)
        damage = f"{problems[0]}; going on from {path.name}, step {state.step}"
        return Checkpoint(state, states, damage)
    if not folder.checkpoint.is_file() and not folder.previous.is_file():
        return None
    raise UserError(
        f"{'; '.join(problems)}; delete {folder.checkpoint.parent} to start the run again"
    )


def _reason(error: Exception) -> str:
    text = one_line(error)
    return text if isinstance(error, UserError) else f"{type(error).__name__} {text}"


def _load(path: Path) -> tuple[RunState, dict[str, Any]]:
    with path.open("rb") as file:
        _require_sound(file)
    states: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    version = states.pop("format", FORMAT)
    if version != FORMAT:
        raise UserError(f"it has format {version}, and this version reads {FORMAT}: update aicsd")
    return RunState(**states.pop("progress")), states


def _require_sound(file: BinaryIO) -> None:
    """Compare the file with the checksum in its comment; one of an older version has none."""
    size = file.seek(0, 2)
    file.seek(max(size - COMMENT_BYTES - 2, 0))
    tail = file.read()
    if tail[-END_BYTES:].startswith(END_OF_ZIP) and tail.endswith(b"\0\0"):
        return
    length, comment = tail[:2], tail[2:]
    file.seek(0)
    digest = hashlib.sha256()
    left = size - COMMENT_BYTES - 2
    while left > 0 and (part := file.read(min(left, 1 << 20))):
        digest.update(part)
        left -= len(part)
    digest.update(b"\0\0")  # the length of the comment before there was one
    if (
        length != COMMENT_BYTES.to_bytes(2, "little")
        or comment != MARK + digest.hexdigest().encode()
    ):
        raise UserError("its checksum is wrong")


class _HashingFile:
    """A file that computes the SHA-256 of what is written, and keeps the error of a full disk."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, part: bytes) -> int:
        try:
            written = self._file.write(part)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(part)
        return written

    def flush(self) -> None:
        self._file.flush()
