"""aicsd demo."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from aicsd.cli.common import open_model
from aicsd.config import ConfigParser
from aicsd.errors import UserError
from aicsd.hub import is_hub_name
from aicsd.runs import RunFolder

HELP = "a page in the browser: what teacher and student see in an image"


def build_parser() -> ConfigParser:
    parser = ConfigParser(description=HELP)
    parser.add_argument(
        "model", type=str, help="run folder, safetensors file, checkpoint or hf:user/name"
    )
    parser.add_argument(
        "--teacher", type=str | None,
        help="model to show beside it; without it the teacher that the run was distilled from",
    )  # fmt: skip
    parser.add_argument(
        "--port", type=int | None, help="of the page; without it the first free one from 7860 on"
    )
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or mps")
    return parser


def run(options: Any) -> int:
    from aicsd.prediction.page import build_page, launch, require_gradio

    require_gradio()
    if options.port is not None and not 0 < options.port < 1 << 16:
        raise UserError(f"port is {options.port}; it is 1 to 65535")
    student, device = open_model(options.model, options.device)
    models = {"student": student}
    teacher = options.teacher or _teacher_of(options.model)
    if teacher is not None:
        models = {"teacher": open_model(teacher, options.device)[0], **models}
    page = build_page(models, device)
    print(f"{launch(page, options.port)} (Ctrl+C ends it)", flush=True)
    page.block_thread()
    return 0


def _teacher_of(run: str) -> str | None:
    """The teacher that the run's config names, if it still is where it was."""
    teacher = RunFolder(run).teacher()
    if teacher is None or is_hub_name(teacher) or Path(teacher).exists():
        return teacher
    print(f"aicsd: no teacher at {teacher} any more; --teacher names another", file=sys.stderr)
    return None
