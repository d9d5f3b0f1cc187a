import subprocess
import sys

from tests.pipelines.harness import medseg


def test_help_lists_the_commands() -> None:
    for command in ("pipelines", "run", "segment", "demo", "compile"):
        assert command in medseg("--help").stdout


def test_help_imports_click_and_nothing_else() -> None:
    """What makes it quick; the seconds stand in ``./build.sh bench overhead``."""
    code = (
        "import sys; before = set(sys.modules); import medseg.cli\n"
        "with __import__('contextlib').suppress(SystemExit): medseg.cli.main(['--help'])\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new - sys.stdlib_module_names - {'medseg'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "click lazy_loader"


def test_pipelines_table() -> None:
    table = medseg("pipelines").stdout
    for name in ("lifecycle", "train", "dicom_to_nifti", "convert_pt_to_ts"):
        assert name in table
    one = medseg("pipelines", "train").stdout
    assert "│ [-1] " in one
    for parameter in ("config_file_path", "folds", "pvc_name", "gpu_count", "node_selector"):
        assert parameter in one


def test_mistakes_on_the_command_line(tmp_path: object) -> None:
    for arguments, sentence in (
        (("run", "trian"), "there is no pipeline 'trian' (did you mean 'train'?)"),
        (("run", "train", "-p", "fold=1"), "no parameter 'fold' (did you mean 'folds'?)"),
        (("run", "train"), "pipeline train needs config_file_path"),
        (("run", "train", "-p", "x"), "-p x: write it as -p name=value."),
        (
            ("run", "train", "-p", "config_file_path=c", "-p", "folds=one"),
            "parameter folds: 'one' is not a JSON list.",
        ),
    ):
        done = medseg(*arguments, "--data-root", tmp_path)
        assert done.returncode == 1
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
