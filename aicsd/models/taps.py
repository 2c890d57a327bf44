"""Features of a network that offers none: outputs of its modules, by path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from aicsd.errors import UserError, did_you_mean
from aicsd.models.maps import as_output
from aicsd.types import SegOutput

Layout = Literal["maps", "channels_last", "tokens"]


class Tap(NamedTuple):
    """Origin of a feature."""

    path: str
    """Path of the module, as in ``named_modules``."""
    layout: Layout = "maps"
    """``maps`` (B, D, h, w), ``channels_last`` (B, h, w, D) or ``tokens`` (B, N, D)."""
    extra_tokens: int = 0
    """Tokens before those of the image, such as a class token."""


class Tapped(nn.Module):
    """A network together with the outputs of some of its modules.

    The hooks are set for one forward pass and removed after it, so that copies, compiled networks
    and folded ones read their own modules.

    Args:
        net: takes normalised (B, 3, H, W) images; its own features are kept.
        taps: name of the feature -> its module. A plain path means (B, D, h, w).

    Raises:
        UserError: a path that names no module.
    """

    def __init__(self, net: nn.Module, taps: Mapping[str, Tap | str]) -> None:
        super().__init__()
        self.net = net
        self.taps = {n: Tap(tap) if isinstance(tap, str) else tap for n, tap in taps.items()}
        known = [path for path, _ in net.named_modules() if path]
        for tap in self.taps.values():
            if tap.path not in known:
                hint = did_you_mean(tap.path, known)
                raise UserError(f"the network has no module {tap.path!r}{hint}")

    def forward(self, image: Tensor) -> SegOutput:
        """(B, 3, H, W) -> the output of the network, with one feature for each tap."""
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            def hook(_: nn.Module, __: Any, output: Any) -> None:
                found[name] = output[0] if isinstance(output, tuple | list) else output

            return hook

        hooks = [
            self.net.get_submodule(tap.path).register_forward_hook(keep(name))
            for name, tap in self.taps.items()
        ]
        try:
            output = as_output(self.net(image))
        finally:
            for hook in hooks:
                hook.remove()
        height, width = image.shape[-2:]
        features = {
            name: as_maps(found[name], tap, (height, width), name)
            for name, tap in self.taps.items()
        }
        return output._replace(features={**output.features, **features})


def as_maps(output: Tensor, tap: Tap, size: tuple[int, int], name: str) -> Tensor:
    """Output of a module as (B, D, h, w).

    Args:
        output: output of the module.
        tap: layout of the output.
        size: (H, W) of the image; tokens are its patches, row by row.
        name: name of the feature, for the message.

    Raises:
        UserError: an output of other dimensions, or tokens that make no rectangle.
    """
    dimensions = 3 if tap.layout == "tokens" else 4
    if output.dim() != dimensions:
        raise UserError(
            f"feature {name!r}: the module {tap.path!r} returns {tuple(output.shape)}, "
            f"not {dimensions} dimensions ({tap.layout})"
        )
    if tap.layout == "maps":
        return output
    if tap.layout == "channels_last":
        return output.permute(0, 3, 1, 2)
    tokens = output[:, tap.extra_tokens :]
    count = tokens.shape[1]
    rows = max(1, round((count * size[0] / size[1]) ** 0.5))
    if count % rows:
        raise UserError(
            f"feature {name!r}: {count} tokens make no rectangle for an image of "
            f"{size[0]}x{size[1]} pixels"
        )
    return tokens.transpose(1, 2).reshape(len(tokens), -1, rows, count // rows)
