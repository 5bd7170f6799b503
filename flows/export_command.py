"""The command export: a detector's weights for other tools."""

from pathlib import Path
from typing import Annotated, Optional

import typer


def export(
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet.")],
    model: Annotated[
        Optional[str],  # noqa: UP045 (typer reads it at run time)
        typer.Option(help="models:/NAME@champion, models:/NAME/VERSION, NAME, or a detector's folder."),
    ] = None,
    run: Annotated[Optional[str], typer.Option(help="A run whose detector it is.")] = None,  # noqa: UP045
    merged: Annotated[
        bool, typer.Option("--merged", help="The whole model with the adapter in its weights, for use without PEFT.")
    ] = False,
) -> None:
    """Write a detector's adapter as PEFT reads it, or with --merged a whole Hugging Face model of equal scores."""
    from flows.server import quiet_environment
    from storage.detectors import chosen_detector
    from storage.layout import current

    quiet_environment(current())
    from tasks.export_detector import export_detector

    with chosen_detector(model, run, current()) as chosen:
        facts = export_detector(chosen.folder, folder, merged=merged)
    what = "model with the trained weights of" if merged else "adapter of"
    print(f"The {what} {chosen.name} ({chosen.why}) is in {folder}.")
    if merged:
        print(f"It is a detector, too: atalaia detect FILE --model {folder}")
        if (held := facts["model"]["quantization"]) != "none":
            print(f"Its scores differ a little from the detector's, which was calibrated with weights in {held}.")
