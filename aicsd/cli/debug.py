"""aicsd debug replay."""

from __future__ import annotations

from aicsd.cli.parser import Command


def replay(file: str) -> int:
    """Repeat the forward pass of a step whose loss was not finite, and print every term.

    Args:
        file: nonfinite.pt in the folder of the run that stopped.
    """
    from aicsd.engine.replay import replay as repeat

    found = repeat(file)
    print(f"step {found.step}, progress {found.progress:.4f}")
    if not found.exact:
        print("with the weights of the last checkpoint: those before the step are unknown")
    for part in found.parts:
        print(f"images: {', '.join(part.names)}")
        for name, value in part.values.items():
            weight = found.weights.get(name)
            told = "" if weight is None else f"   weight {weight:g}"
            print(f"  {name:<20} {value:>12.6g}{told}")
        print(f"  {part.cause or 'all values are finite'}")
    return 0


ACTIONS = {
    "replay": Command(replay, replay, example="aicsd debug replay runs/aicsd/nonfinite.pt"),
}
