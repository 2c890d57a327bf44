"""aicsd demo."""

from __future__ import annotations

from aicsd.cli.parser import Command
from aicsd.errors import UserError
from aicsd.inputs import open_model
from aicsd.messages import say
from aicsd.runs import RunFolder


def demo(
    model: str, *, teacher: str | None = None, port: int | None = None, device: str = "auto"
) -> int:
    """Show the predictions of teacher and student on your images in the browser.

    Args:
        model: run folder, safetensors file, checkpoint or hf:user/name.
        teacher: model to compare with; default: the teacher of the run.
        port: port of the page; default: the first free one from 7860 on.
        device: auto, cpu, cuda or mps.
    """
    from aicsd.prediction.page import build_page, launch, require_gradio

    require_gradio()
    if port is not None and not 0 < port < 1 << 16:
        raise UserError(f"port is {port}; it is 1 to 65535")
    student = open_model(model, device)
    models = {"student": student}
    shown = teacher or _teacher_of(model)
    if shown is not None:
        models = {"teacher": open_model(shown, device), **models}
    page = build_page(models, str(student.mean.device))
    print(f"{launch(page, port)} (Ctrl+C ends it)", flush=True)
    page.block_thread()
    return 0


def _teacher_of(run: str) -> str | None:
    """The teacher that the run's config names, if it still is where it was."""
    teacher = RunFolder(run).teacher()
    from aicsd.models import is_there

    if teacher is None or is_there(teacher):
        return teacher
    say(f"the teacher {teacher} no longer exists; give --teacher")
    return None


COMMAND = Command(demo, demo, example="aicsd demo runs/aicsd")
