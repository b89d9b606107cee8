"""`magicfuse build` compiles once and ahead; `magicfuse export-onnx` writes files that run."""

import os
import subprocess
import sys
from pathlib import Path

import openvino
import pytest
from support.small_models import SMALL_FEW_STEP, SMALL_PAPER, save_few_step, stored

from magicfuse_ros.cli import main
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.runtime import onnx_export
from magicfuse_ros.runtime.backends import parity
from magicfuse_ros.runtime.backends.openvino import read_network
from magicfuse_ros.runtime.contract import EngineError
from magicfuse_ros.runtime.parts import INPUTS, parts_of

ROOT = Path(__file__).parents[1]
ALL = "encoder, psi, phi, fusion, decoder"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_few_step(tmp_path_factory.mktemp("models"))


@pytest.fixture
def magicfuse(tmp_path, monkeypatch, capsys):
    """Run the command line with a cache of its own; returns (status, output, errors)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def run(*arguments):
        return main(list(map(str, arguments))), *capsys.readouterr()

    return run


def in_a_process(*arguments, program="from magicfuse_ros.cli import main"):
    return subprocess.run(
        [sys.executable, "-c", f"{program}; raise SystemExit(main())", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_build_compiles_once_and_the_second_run_finds_all_of_it(folder, tmp_path, magicfuse):
    command = ("build", "--model", folder, "--camera", "1280x720")
    status, out, err = magicfuse(*command)
    assert status == 0, err
    assert f"on openvino on cpu: compiled {ALL} in " in out
    assert "preparing psi for 64x40" in err
    kept = sorted((tmp_path / "magicfuse" / "artifacts").glob("*/manifest.json"))
    assert len(kept) == 10  # five graphs, and five networks compiled from them

    status, out, err = magicfuse(*command)
    assert status == 0, err
    assert "on openvino on cpu: nothing to compile, all is ready and checked" in out
    assert "compiling" not in err
    assert sorted((tmp_path / "magicfuse" / "artifacts").glob("*/manifest.json")) == kept


def test_build_without_openvino_says_so_in_one_line_and_eager_needs_nothing(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    hidden = "import sys; sys.modules['openvino'] = None; from magicfuse_ros.cli import main"
    built = in_a_process("build", "--model", folder, program=hidden)
    assert built.returncode == 0, built.stderr
    assert "on eager on cpu: nothing to compile" in built.stdout
    (line,) = [line for line in built.stderr.splitlines() if "openvino" in line]
    assert line == (
        "openvino is faster than eager on cpu and is left out: it is not installed; "
        "run: pip install openvino"
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--model", "no-such-model"], "model 'no-such-model' cannot be loaded"),
        (["--backend", "fast"], "backend is 'fast'; accepted: auto, "),
        (["--backend", "tensorrt", "--device", "cpu"], "it is for cuda only"),
    ],
)
def test_build_says_in_a_line_what_it_cannot_do(arguments, complaint, capsys):
    assert main(["build", *arguments]) == 2
    assert complaint in capsys.readouterr().err.splitlines()[-1]


def test_build_of_a_backend_that_fails_is_no_success(folder, magicfuse, monkeypatch):
    monkeypatch.setattr(parity, "TOLERANCE", -1.0)
    status, _, err = magicfuse("build", "--model", folder)
    assert status == 2
    assert "preparing encoder for 64x48" in err
    assert "backend openvino on cpu fails (encoder in openvino differs from PyTorch" in err
    assert err.splitlines()[-1].startswith("magicfuse build: backend openvino on cpu fail")


@pytest.mark.no_cover  # other tests run its lines; the tracer would slow the exporter by half
def test_exported_files_give_what_pytorch_gives(folder, tmp_path, magicfuse):
    command = ("export-onnx", tmp_path / "onnx", "--model", folder)
    status, out, err = magicfuse(*command)
    assert status == 0, err
    assert out == f"5 files for 64x48 in {tmp_path / 'onnx'}\n"
    assert "torchvision" not in err
    before = (tmp_path / "onnx" / "psi.onnx").read_bytes()
    status, _, err = magicfuse(*command)
    assert status == 2
    assert f"{tmp_path}/onnx/encoder.onnx exists; give another FOLDER, or --overwrite" in err
    assert (tmp_path / "onnx" / "psi.onnx").read_bytes() == before
    parts = parts_of(MagicFuse.from_pretrained(folder), (48, 64), lambda tensor: tensor)
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == {f"{n}.onnx" for n in parts}
    for name, part in parts.items():
        path = tmp_path / "onnx" / f"{name}.onnx"
        assert input_names(path) == INPUTS[name][: len(part.inputs)]
        network = read_network(path)
        assert parity.difference(network(*part.inputs), part.reference) < 1e-4, name


def test_large_weights_go_into_a_file_beside(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "MOST_BYTES", 0)
    monkeypatch.setattr(onnx_export, "parts_of", only("encoder"))
    folder = tmp_path / "onnx"
    (path,) = onnx_export.export_onnx(stored(SMALL_PAPER, tmp_path), (48, 64), folder, ignore)
    assert {each.name for each in folder.iterdir()} == {"encoder.onnx", "encoder.onnx.data"}
    assert input_names(path) == ("image", "noise")


def test_an_export_that_is_wrong_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "parts_of", only("decoder"))
    monkeypatch.setattr(parity, "TOLERANCE", -1.0)
    with pytest.raises(EngineError, match="decoder in ONNX differs from PyTorch"):
        onnx_export.export_onnx(
            stored(SMALL_FEW_STEP, tmp_path), (48, 64), tmp_path / "onnx", ignore
        )
    assert list((tmp_path / "onnx").iterdir()) == []


def test_export_without_its_packages_says_what_to_install(folder, tmp_path, magicfuse, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    status, _, err = magicfuse("export-onnx", tmp_path / "onnx", "--model", folder)
    assert status == 2
    assert err == (
        "magicfuse export-onnx: onnxscript is not installed; "
        "run: pip install onnx onnxscript openvino\n"
    )


def ignore(text):
    pass


def input_names(path):
    return tuple(each.get_any_name() for each in openvino.Core().read_model(path).inputs)


def only(name):
    return lambda *arguments: {name: parts_of(*arguments)[name]}
