"""Pack the files that accelerator_check.py needs on a bare machine, in parts of limited size.

    python scripts/stage_accelerator.py --out STAGE --root CAMVID --teacher TEACHER.safetensors \
        --weights MOBILENETV2_050.safetensors --have PACKAGES.txt

makes STAGE/part1, STAGE/part2, ...: wheels of the packages that the machine does not have, CamVid
with smaller copies of its images, and the networks in half precision. Copied over one another on
the machine, the parts are the folder that ``--stage`` takes. See docs/accelerator.md.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import cv2
from packaging.requirements import Requirement
from safetensors.torch import load_file, save_file
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from aicsd.images import list_images, read_image  # noqa: E402
from aicsd.models import load_model, save_model  # noqa: E402
from aicsd.models.model_file import is_model_file  # noqa: E402

ALWAYS_THERE = ("torch", "torchvision", "numpy", "triton")
PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
)
MIB = 2**20
LOSSLESS = 101
"""Any quality of WebP above 100."""


def normalized(name: str) -> str:
    """A package name as registries compare them."""
    return re.sub(r"[-_.]+", "-", name).lower()


def missing_packages(there: set[str], package: str = "aicsd") -> list[str]:
    """``NAME==VERSION`` of everything that a package needs and ``there`` does not hold.

    What a package that is there needs is there too.
    """
    found: dict[str, str] = {}
    waiting = [Requirement(package)]
    while waiting:
        asked = waiting.pop()
        for text in requires(asked.name) or []:
            needed = Requirement(text)
            name, marker = normalized(needed.name), needed.marker
            extras = asked.extras or {""}
            applies = marker is None or any(marker.evaluate({"extra": e}) for e in extras)
            if not applies or name in there or name in found:
                continue
            try:
                found[name] = version(needed.name)
            except PackageNotFoundError:
                continue  # of another platform
            waiting.append(needed)
    return [f"{name}=={number}" for name, number in sorted(found.items())]


def download(packages: list[str], python: str, folder: Path) -> None:
    """Wheels of ``packages`` for Linux on x86-64."""
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--python-version",
        python,
        "--implementation",
        "cp",
        *platforms,
        "--dest",
        str(folder),
        *packages,
    ]
    subprocess.run(command, check=True)


def copy_dataset(root: Path, out: Path, quality: int) -> None:
    """CamVid with its images as JPEG of this quality, or, for 0, as lossless WebP."""
    suffix = ".jpg" if quality else ".webp"
    settings = (
        [cv2.IMWRITE_JPEG_QUALITY, quality] if quality else [cv2.IMWRITE_WEBP_QUALITY, LOSSLESS]
    )
    for split in ("train", "val"):
        for image in list_images(root / split):
            target = out / split / f"{image.stem}{suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            pixels = cv2.cvtColor(read_image(image), cv2.COLOR_RGB2BGR)
            target.write_bytes(cv2.imencode(suffix, pixels, settings)[1].tobytes())
        shutil.copytree(root / f"{split}annot", out / f"{split}annot", dirs_exist_ok=True)


def halve(source: Path, target: Path) -> None:
    """A model file, or bare weights, in half precision; loading turns them into float32 again.

    Only matrices and filters are halved: the variances of batch norms reach beyond half precision.
    """
    if is_model_file(source):
        model = load_model(source)
        for parameter in model.net.parameters():
            parameter.data = _half(parameter.data)
        save_model(model, target)
    else:
        save_file({key: _half(value) for key, value in load_file(source).items()}, target)


def _half(tensor: Tensor) -> Tensor:
    return tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor


def into_parts(whole: Path, out: Path, limit: int) -> list[int]:
    """Move files into ``part1``, ``part2``, ... of at most ``limit`` bytes each; their sizes.

    Raises:
        SystemExit: a file that is larger.
    """
    files = sorted(
        (path for path in whole.rglob("*") if path.is_file()),
        key=lambda path: (-path.stat().st_size, str(path)),
    )
    sizes: list[int] = []
    for path in files:
        size = path.stat().st_size
        if size > limit:
            raise SystemExit(f"{path.name} has {size / MIB:.1f} MiB: raise --limit, or see --have")
        part = next((n for n, used in enumerate(sizes) if used + size <= limit), len(sizes))
        if part == len(sizes):
            sizes.append(0)
        sizes[part] += size
        target = out / f"part{part + 1}" / path.relative_to(whole)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    shutil.rmtree(whole)
    return sizes


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder that gets the parts")
    parser.add_argument("--root", type=Path, help="CamVid in the SegNet layout")
    parser.add_argument("--teacher", type=Path, help="model file")
    parser.add_argument("--weights", type=Path, help="pretrained backbone of the student")
    parser.add_argument("--backbone", type=Path, help="pretrained backbone of a teacher to train")
    parser.add_argument("--have", type=Path, help="names of the packages there, one a line")
    parser.add_argument("--python", default="3.12", help="version there")
    parser.add_argument("--quality", type=int, default=0, help="of JPEG copies; 0: lossless")
    parser.add_argument("--limit", type=float, default=60, help="MiB of a part")
    options = parser.parse_args(arguments)
    if options.out.exists():
        parser.error(f"{options.out} exists; choose another folder")
    whole = options.out / "whole"
    whole.mkdir(parents=True)
    lines = options.have.read_text(encoding="utf-8").splitlines() if options.have else []
    there = {normalized(re.split(r"[\s=@;]", line.strip())[0]) for line in lines if line.strip()}
    packages = missing_packages(there | set(ALWAYS_THERE))
    if packages:
        (whole / "wheels").mkdir()
        download(packages, options.python, whole / "wheels")
    if options.root:
        copy_dataset(options.root, whole / "camvid", options.quality)
    networks = {
        "teacher": options.teacher,
        "student": options.weights,
        "backbone": options.backbone,
    }
    for name, source in networks.items():
        if source:
            halve(source, whole / f"{name}.safetensors")
    for top in sorted(whole.iterdir()):
        files = [path for path in (top, *top.rglob("*")) if path.is_file()]
        size = sum(path.stat().st_size for path in files) / MIB
        print(f"{top.name}: {len(files)} files, {size:.1f} MiB")
    for number, size in enumerate(into_parts(whole, options.out, int(options.limit * MIB)), 1):
        print(f"part{number}: {size / MIB:.1f} MiB")


if __name__ == "__main__":
    main()
