"""Feed damaged files to every reader, and check that each is read or refused in one line.

    python scripts/fuzz.py [--inputs 100000] [--seed 0] [--only NAME,...] [--keep FOLDER]

A file that is sound gets 1 to 8 random changes: bits, bytes, numbers at the edge of their range,
parts that are cut, doubled or zeroed, words of its language. The reader may return, or raise
``UserError`` with a text of one line. Anything else is a finding: another exception, a process that
dies, more than 10 seconds, more than 4 GB. An input is known by its reader, the seed and its
number: ``--only READER --seed S --first N --inputs 1`` repeats one, ``--keep`` writes those that
were found to a folder.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from fuzz_changes import change
from PIL import Image

from aicsd.config import build_config
from aicsd.data import Classes
from aicsd.data.archives import unpack
from aicsd.data.classes_file import read_classes, read_color_table
from aicsd.data.sbd_file import read_sbd_mask
from aicsd.data.shard_index import kept_members
from aicsd.data.shards import open_shards
from aicsd.data.web_file import WebFile
from aicsd.engine.checkpoint import RunState, load_checkpoint, save_checkpoint
from aicsd.engine.replay import replay
from aicsd.errors import UserError
from aicsd.files import read_json, read_json_lines, read_yaml_mapping
from aicsd.images import image_size, read_colors, read_image, read_mask
from aicsd.methods import load_recipe
from aicsd.models import ModelConfig, build_model, load_model, save_model
from aicsd.models.beside import read_beside
from aicsd.prediction.stream import read_stream
from aicsd.run_config import DistillConfig
from aicsd.runs import RunFolder
from aicsd.teacher.cache_file import read_index
from aicsd.visualization.ics_history import ICSHistory, read_history, write_history

SECONDS = 10
MEMORY = 4 << 30
TAR = WebFile("https://host/train.tar", 10240, "v")
CLASSES = Classes(("a", "b", "c"), ((0, 0, 0), (200, 0, 0), (0, 0, 200)))
TINY = {"backbone": "mobilenetv2_035", "aspp_channels": 8, "decoder_channels": 8}


class Reader(NamedTuple):
    """One reader: the name that its file has, sound contents of it, and what reads it."""

    file: str
    samples: list[bytes]
    read: Callable[[Path], object]


class Finding(NamedTuple):
    reader: str
    number: int
    what: str


def pictures() -> dict[str, list[bytes]]:
    """Small images of every format, as images and as masks."""
    random_values = np.random.default_rng(0)
    color = random_values.integers(0, 255, (9, 13, 3), dtype=np.uint8)
    found: dict[str, list[bytes]] = {"image": [], "mask": []}
    for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP"):
        found["image"].append(encoded(Image.fromarray(color), kind))
    exif = Image.Exif()
    exif[0x0112] = 6
    found["image"].append(encoded(Image.fromarray(color), "JPEG", exif=exif))
    ids = Image.fromarray(color[..., 0] % 3)
    palette = ids.copy()
    palette.putpalette([0, 0, 0, 200, 0, 0, 0, 0, 200])
    wide = Image.fromarray((color[..., 0] % 3).astype(np.uint16))
    for kind in ("PNG", "BMP", "TIFF"):
        found["mask"] += [encoded(ids, kind), encoded(palette, kind)]
    found["mask"] += [encoded(wide, "PNG"), encoded(wide, "TIFF")]
    return found


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def sbd_masks() -> list[bytes]:
    from scipy.io import savemat

    mask = np.arange(35, dtype=np.uint8).reshape(5, 7) % 21
    found = []
    for compressed in (False, True):
        buffer = io.BytesIO()
        savemat(buffer, {"GTcls": {"Segmentation": mask}}, do_compression=compressed)
        found.append(buffer.getvalue())
    return found


def bytes_of(write: Callable[[Path], object], name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
        return path.read_bytes()


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b.txt", "text" * 20)
        archive.writestr("a/c.png", bytes(range(200)))


def shard(images: dict[str, list[bytes]], path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in (("a.jpg", images["image"][1]), ("a.mask.png", images["mask"][0])):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def unpacked(path: Path) -> None:
    place = path.parent / "unpacked"
    shutil.rmtree(place, ignore_errors=True)
    unpack(path, "a", place)


def tar_index(path: Path) -> None:
    """Read an index as it is, and once more with the checksum of what it holds."""
    kept_members(path, TAR)
    text = path.read_bytes().partition(b"\n")[2]
    path.write_bytes(sha256(text).hexdigest().encode() + b"\n" + text)
    kept_members(path, TAR)


def readers(run: Path) -> dict[str, Reader]:
    """Every reader; ``run`` is a folder with a config, for those that need one."""
    images = pictures()
    torch.manual_seed(0)
    model = build_model(ModelConfig(**TINY), CLASSES)  # type: ignore[arg-type]
    run.mkdir(parents=True)
    (run.parent / "shards").mkdir()
    (run.parent / "shards" / "classes.txt").write_text("a\nb\nc\n")
    keys: dict[str, Any] = {"run": "r", "method": "aicsd", "student": TINY, "epochs": 3, "seed": 1}
    keys |= {"data": {"name": "digits", "augment": {"crop": 64}}}
    config = yaml.safe_dump(keys).encode()
    (run / "config.yaml").write_bytes(config)
    recipe = (
        b"terms:\n  cross_entropy: {resolution: input}\n  pixel_kd: {weight: 1, temperature: 4}\n"
    )
    index_head = {
        "format": 1,
        "teacher": "x",
        "classes": ["a"],
        "top_k": 0,
        "names": ["n"],
        "sizes": [[4, 4]],
    }
    tar_head = {"format": 1, "url": TAR.url, "length": TAR.length, "version": TAR.version}
    tar_members = [["a.jpg", 512, 900], ["a.mask.png", 2048, 80]]
    tar_text = json.dumps(tar_head | {"members": tar_members}).encode()
    state = {"a": torch.arange(6.0)}
    matrices = np.arange(9.0).reshape(3, 3)

    def history(path: Path) -> None:
        kept = ICSHistory(["n"])
        kept.steps[0] = matrices
        write_history(path.parent, kept)

    def write_model(path: Path) -> None:
        save_model(model, path, {"metrics": {"miou": 0.5}})

    def write_checkpoint(path: Path) -> None:
        save_checkpoint(RunFolder(path.parents[1]), RunState(3), {"distiller": state})

    def read_all(path: Path) -> None:
        with path.open("rb") as file:
            for found in read_stream(file):
                if isinstance(found, UserError):
                    require_one_line(found)

    json_text = json.dumps({"miou": 0.5, "per_class_iou": {"a": 0.1}, "images": 3}).encode()
    line = json.dumps({"step": 3, "loss": 0.5}).encode() + b"\n"
    return {
        "image": Reader("x.png", images["image"], read_image),
        "size": Reader("x.png", images["image"], image_size),
        "mask": Reader("x.png", images["mask"], read_mask),
        "colors": Reader("x.png", images["image"] + images["mask"], read_colors),
        "stream": Reader("x", [b"".join(images["image"][:2]), images["image"][4]], read_all),
        "sbd": Reader("x.mat", sbd_masks(), read_sbd_mask),
        "yaml": Reader("x.yaml", [config, recipe], read_yaml_mapping),
        "config": Reader(
            "x.yaml", [config], lambda p: build_config(DistillConfig, read_yaml_mapping(p))
        ),
        "recipe": Reader("x.yaml", [recipe], lambda p: load_recipe(str(p))),
        "json": Reader("x.json", [json_text], read_json),
        "log": Reader("x.jsonl", [line * 3], read_json_lines),
        "run": Reader("run/config.yaml", [config], lambda p: RunFolder(p.parent).read_config()),
        "result": Reader(
            "run/metrics.json", [json_text], lambda p: RunFolder(p.parent).read_result()
        ),
        "classes": Reader(
            "classes.txt", [b"road\ncar\n", b"name,r,g,b\nroad,1,2,3\n"], read_classes
        ),
        "class colours": Reader(
            "classes.csv", [b"name,r,g,b\nroad,1,2,3\ncar,4,5,6\n"], read_color_table
        ),
        "beside": Reader(
            "model.yaml",
            [b"classes: [a, b]\nmean: [0, 0, 0]\nstd: [1, 1, 1]\n"],
            lambda p: read_beside(p.with_suffix(".onnx")),
        ),
        "shard": Reader(
            "shards/train.tar",
            [bytes_of(partial(shard, images), "x.tar")],
            lambda p: open_shards(p.parent, "train").read(0),
        ),
        "archive": Reader("x.zip", [bytes_of(zipped, "x.zip")], unpacked),
        "cache": Reader(
            "cache/index.jsonl",
            [json.dumps(index_head).encode() + b"\n"],
            lambda p: read_index(p.parent),
        ),
        "tar index": Reader("shards/train.tar.index", [b"-\n" + tar_text], tar_index),
        "history": Reader(
            "h/ics.safetensors",
            [bytes_of(history, "ics.safetensors")],
            lambda p: read_history(p.parent),
        ),
        "checkpoint": Reader(
            "c/checkpoints/last.pt",
            [bytes_of(write_checkpoint, "checkpoints/last.pt")],
            lambda p: load_checkpoint(RunFolder(p.parents[1])),
        ),
        "released": Reader(
            "x.pth.tar", [bytes_of(partial(torch.save, {"state_dict": state}), "x")], load_model
        ),
        "model": Reader("m.safetensors", [bytes_of(write_model, "m.safetensors")], load_model),
        "step": Reader(
            "run/nonfinite.pt", [bytes_of(partial(torch.save, {"format": 1}), "x")], replay
        ),
    }


SHARES = {"model": 0.01, "config": 0.5} | dict.fromkeys(
    ("checkpoint", "released", "step", "recipe"), 0.3
)
"""Inputs of slow readers, as a part of those of the others."""


def require_one_line(error: UserError) -> None:
    text = str(error)
    if "\n" in text or not text.strip() or len(text) > 2000:
        raise AssertionError(f"not one line: {text[:300]!r}")


class TookTooLongError(BaseException):
    """No Exception, which a reader might catch."""


def _alarm(*_: object) -> None:
    raise TookTooLongError


def work(
    name: str, reader: Reader, folder: Path, seed: int, numbers: range, out: Any, at: Any
) -> None:
    """Run the inputs of one reader in a process, and send findings through a pipe."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, _alarm)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    path = folder / reader.file
    for number in numbers:
        at.value = number
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(damaged(name, reader, seed, number))
        signal.alarm(SECONDS)
        try:
            reader.read(path)
        except UserError as error:
            try:
                require_one_line(error)
            except AssertionError as wrong:
                out.send(Finding(name, number, str(wrong)))
        except TookTooLongError:
            out.send(Finding(name, number, f"more than {SECONDS} s"))
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)
            places = [f for f in where if "aicsd" in f.filename] or list(where)
            place = f"{Path(places[-1].filename).name}:{places[-1].lineno}"
            text = " ".join(str(error).split())[:150]
            out.send(Finding(name, number, f"{type(error).__name__} at {place}: {text}"))
        finally:
            signal.alarm(0)
    at.value = -1
    out.send(None)


def damaged(name: str, reader: Reader, seed: int, number: int) -> bytes:
    draw = random.Random(f"{seed} {name} {number}")
    return change(draw.choice(reader.samples), draw)


def fuzz_reader(
    name: str, reader: Reader, folder: Path, seed: int, numbers: range
) -> list[Finding]:
    """Everything that went wrong; a process that dies is replaced."""
    fork, findings = multiprocessing.get_context("fork"), []
    first = numbers.start
    while first < numbers.stop:
        at = fork.Value("q", first, lock=False)
        receive, send = fork.Pipe(duplex=False)
        rest = range(first, numbers.stop)
        process = fork.Process(target=work, args=(name, reader, folder, seed, rest, send, at))
        process.start()
        send.close()
        try:
            while (found := receive.recv()) is not None:
                findings.append(found)
            process.join()
            break
        except EOFError:
            process.join()
            findings.append(Finding(name, at.value, f"the process ended with {process.exitcode}"))
            first = at.value + 1
    return findings


def main() -> None:
    parser = argparse.ArgumentParser(description="damaged files for every reader")
    parser.add_argument("--inputs", type=int, default=100_000, help="of all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", default="", help="readers, with commas between")
    parser.add_argument("--keep", type=Path, help="folder that gets the inputs that were found")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wrong: list[Finding] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        every = readers(folder / "run")
        names = [name.strip() for name in options.only.split(",") if name.strip()] or list(every)
        total = sum(SHARES.get(name, 1.0) for name in names)
        done = 0
        for name in names:
            count = -(-round(options.inputs * SHARES.get(name, 1.0)) // max(1, round(total)))
            count = options.inputs if len(names) == 1 else count
            begin = time.monotonic()
            numbers = range(options.first, options.first + count)
            found = fuzz_reader(name, every[name], folder, options.seed, numbers)
            done += count
            print(
                f"{name}: {count} inputs, {len(found)} findings, {time.monotonic() - begin:.0f} s",
                flush=True,
            )
            kinds: dict[str, Finding] = {}
            for finding in found:
                kinds.setdefault(finding.what.partition(": ")[0], finding)
            for finding in kinds.values():
                print(f"  input {finding.number}: {finding.what}", flush=True)
                if options.keep is not None:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    kept = options.keep / f"{name}-{options.seed}-{finding.number}"
                    kept.write_bytes(damaged(name, every[name], options.seed, finding.number))
            wrong += found
    print(f"{done} inputs, {len(wrong)} findings (seed {options.seed})")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
