"""A wheel and a source archive are built without the network, and work elsewhere."""

import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from documents_for_tests import ROOT

import rome_lens as rl

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_version_changelog_and_citation_agree() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    (newest, *_) = re.findall(r"^## (\S+)", changelog, re.MULTILINE)
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited is not None
    assert (newest, cited.group(1)) == (rl.__version__, rl.__version__)


def test_every_extra_is_pinned() -> None:
    """The packages that the extras name; what these need is pinned too, which pip shows."""
    named = [
        re.split(r"[\[<>=;! ]", requirement)[0].lower()
        for extra, requirements in project()["optional-dependencies"].items()
        for requirement in requirements
        if not requirement.startswith("rome-lens")
    ]
    for constraints in ("constraints.txt", "constraints-bridge.txt"):
        text = (ROOT / constraints).read_text(encoding="utf-8").lower()
        assert [name for name in named if f"\n{name}==" not in text] == []


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The source archive of a copy of the tree, and the wheel of that archive's content."""
    directory = tmp_path_factory.mktemp("built")
    tree = directory / "tree"
    ignored = shutil.ignore_patterns(
        ".venv*",
        "venv",
        ".hypothesis",
        ".git",
        "build",
        "dist",
        "*.egg-info",
        "__pycache__",
        ".*_cache",
    )
    shutil.copytree(ROOT, tree, ignore=ignored)
    _build("sdist", tree, directory)
    (archive,) = directory.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(directory / "unpacked", filter="data")
    (unpacked,) = (directory / "unpacked").iterdir()
    _build("wheel", unpacked, directory)
    (wheel,) = directory.glob("*.whl")
    return {"sdist": archive, "wheel": wheel}


def _build(kind: str, tree: Path, out: Path) -> None:
    """Call the build backend as a build frontend does, but in this environment."""
    code = f"import sys, setuptools.build_meta as b; b.build_{kind}(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(out)],
        cwd=tree,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.real  # the slower part
@pytest.mark.xdist_group("packages")
def test_the_wheel_holds_the_whole_package_and_says_what_it_is(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as wheel:
        packed = {name for name in wheel.namelist() if name.startswith("rome_lens/")}
        (name,) = (each for each in wheel.namelist() if each.endswith("/METADATA"))
        said = email.message_from_bytes(wheel.read(name))
    own = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "rome_lens").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == own
    assert (said["Name"], said["Version"]) == ("rome-lens", rl.__version__)
    assert said["Author"] == "rome_lens developers"
    assert said["License-Expression"] == "MIT"
    assert "Topic :: Scientific/Engineering :: Artificial Intelligence" in said.get_all(
        "Classifier"
    )
    assert "TransformerLens" in said["Keywords"]
    with tarfile.open(built["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "constraints.txt"}
    assert wanted - names == set()


@pytest.mark.real
@pytest.mark.xdist_group("packages")
def test_an_installed_wheel_runs_and_finds_its_data(built: dict[str, Path], tmp_path: Path) -> None:
    """In a new environment that has this one's packages, but not this package."""
    environment, empty = tmp_path / "environment", tmp_path / "empty"
    empty.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-compile",
    ]
    install += ["--no-deps", "--no-index", str(built["wheel"])]
    # With a PYTHONPATH, pip would find this tree, and say that the package is there already.
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(install, check=True, capture_output=True, env=env)
    (packages,) = environment.rglob("site-packages")
    # A path here comes after the environment's own packages, and its .pth files are not read.
    (packages / "elsewhere.pth").write_text(sysconfig.get_path("purelib"))
    code = (
        "import rome_lens as rl; from pathlib import Path\n"
        "model = rl.load_model('toy')\n"
        "print(Path(rl.__file__).parent.parent)\n"
        "print(len(rl.data.records()) > 100, len(rl.data.texts()) > 100)\n"
        "print(rl.top_answers(model, ['Dora Kowalski lives in the city of'], count=1)[0])\n"
    )
    done = subprocess.run(
        [str(python), "-W", "ignore", "-c", code],
        cwd=empty,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    place, data, answer = done.stdout.splitlines()[-3:]
    assert Path(place).resolve() == packages.resolve()
    assert data == "True True"
    assert answer == "' Karsun' 0.988"
    assert python.with_name("rome-lens").is_file()
