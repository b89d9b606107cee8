"""Scores of fused pictures that lie in folders, whichever method made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from magicfuse_ros.evaluation.fusion_metrics import FUSION_METRICS, fusion_columns, fusion_scores
from magicfuse_ros.evaluation.metrics import U8, grey
from magicfuse_ros.evaluation.protocol import Quoted
from magicfuse_ros.evaluation.tables import Column, Row, Scores, Table
from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.sources.pictures import to_rgb8
from magicfuse_ros.training.datasets import DatasetError
from magicfuse_ros.training.datasets.frames import read_image
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

    Pictures belong together by their names without endings; colours are scored as luminance.

    Parameters
    ----------
    fused
        Folders, a row each, named by the last part of their paths.
    visible, infrared
        Folders of the two sources, of the same names and sizes.
    limit
        At most so many pictures, evenly from all; 0 takes all.
    quoted
        The paper's rows to put below.

    Raises
    ------
    DatasetError
        A folder or picture is missing, damaged, of another size, or has no partner.
    ConfigError
        Two folders of fused pictures have one name.
    """
    rows = {folder.resolve().name: by_stem(folder) for folder in fused}
    if len(rows) < len(fused):
        raise ConfigError(f"--fused is {[str(each) for each in fused]}; accepted: different names")
    sources = {str(visible): by_stem(visible), str(infrared): by_stem(infrared)}
    stems = list(sources[str(visible)])
    if not stems:
        raise DatasetError(f"{visible} holds no pictures")
    _check_partners(visible, stems, {**sources, **{str(f): rows[f.resolve().name] for f in fused}})
    if 0 < limit < len(stems):
        stems = [stems[(2 * k + 1) * len(stems) // (2 * limit)] for k in range(limit)]
    scores = Scores()
    for stem in stems:
        light, heat = (_grey(files[stem]) for files in sources.values())
        for name, files in rows.items():
            own = _grey(files[stem])
            for other, path in ((heat, sources[str(infrared)][stem]), (own, files[stem])):
                if other.shape != light.shape:
                    raise DatasetError(
                        f"{path} is {other.shape[1]}x{other.shape[0]} but "
                        f"{sources[str(visible)][stem]} is {light.shape[1]}x{light.shape[0]}; "
                        "pictures that are scored together have one size"
                    )
            scores.add([name], **fusion_scores(light, heat, own, _ALL))
    cells: list[Row] = [
        (name, len(stems), *(scores.mean(name, metric) for metric in _ALL)) for name in rows
    ]
    if quoted is not None:
        cells += quoted.cells(("images", *_ALL))
    columns = (Column("method"), Column("images"), *fusion_columns(_ALL))
    note = "The fusion convention's PSNR is the true one + 48.13 dB."
    if quoted is not None:
        note += " Rows marked as quoted are the paper's own, on its images."
    return Table("Fused pictures", columns, tuple(cells), note)


def _check_partners(
    visible: Path, stems: Sequence[str], folders: Mapping[str, Mapping[str, Path]]
) -> None:
    for folder, files in folders.items():
        missing = [stem for stem in stems if stem not in files]
        more = [stem for stem in files if stem not in set(stems)]
        if missing:
            raise DatasetError(
                f"{folder} has no picture named {missing[0]} (nor {len(missing) - 1} others), as "
                f"{visible} has; every picture needs its partners"
            )
        if more:
            raise DatasetError(
                f"{visible} has no picture named {more[0]} (nor {len(more) - 1} others), as "
                f"{folder} has; every picture needs its partners"
            )


def _grey(path: Path) -> U8:
    return grey(to_rgb8(read_image(path)))
