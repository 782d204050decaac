"""The built wheels in an environment of their own, away from the checkout. Made once per test run."""

import functools
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(*command: object, **options) -> str:
    """Standard output of a command; if it fails, everything it said."""
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **options,
    )
    assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stdout}"
    return done.stdout


# Distribution -> the folder of its pyproject.toml.
PROJECTS = {"uvr-core": ROOT, "uvr-zoo": ROOT / "extras" / "uvr_zoo"}


@functools.cache
def wheel(base: Path, distribution: str = "uvr-core") -> Path:
    """The wheel of one of PROJECTS, built below `base`."""
    out = base / f"wheel-{distribution}"
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, PROJECTS[distribution])
    (built,) = out.glob("*.whl")
    return built


@functools.cache
def environment(base: Path, name: str) -> Path:
    """The interpreter of a fresh environment that holds the wheels.

    Installing torch again would take minutes, so the other packages are lent by this environment: a folder
    of links to everything in its site-packages but our own distributions and the .pth files (an editable install
    is made of both).
    """
    home = base / name
    lent = home / "lent"
    lent.mkdir(parents=True)
    for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for item in Path(folder).iterdir():
            if item.suffix != ".pth" and not item.name.startswith(("uvr_", "_uvr_", "__pycache__")):
                (lent / item.name).symlink_to(item)
    run(sys.executable, "-m", "venv", "--without-pip", home / "venv")
    python = home / "venv" / "bin" / "python"
    wheels = [wheel(base, distribution) for distribution in PROJECTS]
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", *wheels)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip()
    (Path(site) / "lent.pth").write_text(f"{lent}\n")
    return python


def away(folder: Path) -> dict:
    """Options of `run` for a place outside the checkout that sees no path, cache or hub of this one."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "UVR_", "PYTEST_"))}
    env |= {"PYTHONNOUSERSITE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    (folder / "cwd").mkdir()
    return {"cwd": folder / "cwd", "env": env}
