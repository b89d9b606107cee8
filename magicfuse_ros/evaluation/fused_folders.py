"""Scores of fused pictures that lie in folders, whichever method made them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from magicfuse_ros.evaluation.fusion_metrics import FUSION_METRICS, fusion_columns, fusion_scores
from magicfuse_ros.evaluation.metrics import U8, grey
from magicfuse_ros.evaluation.protocol import Quoted
from magicfuse_ros.evaluation.scenes import spread
from magicfuse_ros.evaluation.tables import Column, Row, Scores, Table
from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.sources.pictures import to_rgb8
from magicfuse_ros.training.datasets.frames import DatasetError, read_image
from magicfuse_ros.training.datasets.layouts import by_stem

_ALL = tuple(FUSION_METRICS)


def fused_folders_table(
    fused: Sequence[Path],
    visible: Path,
    infrared: Path,
    *,
    limit: int = 0,
    quoted: Quoted | None = None,
) -> Table:
    """Score every folder of fused pictures against the same visible and infrared ones.

    A folder is a row, named by the last part of its path, with the paper's `quoted` rows below.
    Pictures belong together by their names without endings and have one size; colours are scored as
    luminance. Of all pictures at most `limit` are taken, evenly; 0 takes all.

    Raises DatasetError if a folder or picture is missing, damaged, of another size, or has no
    partner. Raises ConfigError if two folders of fused pictures have one name.
    """
    methods = {folder.resolve().name: by_stem(folder) for folder in fused}
    if len(methods) < len(fused):
        raise ConfigError(f"--fused is {[str(each) for each in fused]}; accepted: different names")
    lights, heats = by_stem(visible), by_stem(infrared)
    if not lights:
        raise DatasetError(f"{visible} holds no pictures")
    for folder, files in ((infrared, heats), *zip(fused, methods.values(), strict=True)):
        odd = sorted(lights.keys() ^ files.keys())
        if odd:
            lacking = folder if odd[0] in lights else visible
            raise DatasetError(
                f"{lacking} has no picture named {odd[0]}; {len(odd)} of {visible} and {folder} "
                "are without a partner, and every picture needs one"
            )
    scores = Scores()
    stems = spread(list(lights), limit)
    for stem in stems:
        light = _grey(lights[stem])
        heat = _grey(heats[stem], like=(light, lights[stem]))
        for name, files in methods.items():
            own = _grey(files[stem], like=(light, lights[stem]))
            scores.add([name], **fusion_scores(light, heat, own, _ALL))
    cells: list[Row] = [
        (name, len(stems), *(scores.mean(name, metric) for metric in _ALL)) for name in methods
    ]
    if quoted is not None:
        cells += quoted.cells(("images", *_ALL))
    columns = (Column("method"), Column("images"), *fusion_columns(_ALL))
    note = "The fusion convention's PSNR is the true one + 48.13 dB."
    if quoted is not None:
        note += " Rows marked as quoted are the paper's own, on its images."
    return Table("Fused pictures", columns, tuple(cells), note)


def _grey(path: Path, like: tuple[U8, Path] | None = None) -> U8:
    image = grey(to_rgb8(read_image(path)))
    if like is not None and image.shape != like[0].shape:
        sizes = [f"{each.shape[1]}x{each.shape[0]}" for each in (image, like[0])]
        raise DatasetError(
            f"{path} is {sizes[0]} but {like[1]} is {sizes[1]}; pictures that are scored together "
            "have one size"
        )
    return image
