import os
import subprocess
import sys
import zipfile
from pathlib import Path

from recdistill.data.embedded import attribution, load_shop

ROOT = Path(__file__).parents[2]
SIZES = (5_537, 4_199, 479_275)  # users, items and interactions as published with the data


def test_has_the_published_size_titles_and_times() -> None:
    shop = load_shop()
    assert (shop.n_users, shop.n_items, shop.n_interactions) == SIZES
    assert shop.title(2) == "GROOVY CACTUS INFLATABLE"
    assert shop.times is not None


def test_attribution_names_licence_and_author() -> None:
    assert "CC BY 4.0" in attribution()
    assert "Chen, D." in attribution()


def test_works_from_a_built_wheel(tmp_path: Path) -> None:
    """Data files are easily left out of a wheel, and nobody notices in a checkout."""
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", build, tmp_path], cwd=ROOT, check=True, capture_output=True, text=True)
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        wheel.extractall(unpacked)
    use = (
        "import recdistill; from recdistill.data.embedded import attribution, load_shop; shop = load_shop();"
        "print(recdistill.__file__, shop.n_users, shop.n_items, shop.n_interactions, 'CC BY' in attribution())"
    )
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    found = subprocess.run(
        [sys.executable, "-c", use], env=environment, cwd=tmp_path, check=True, capture_output=True, text=True
    )
    path, *figures = found.stdout.split()
    assert Path(path).is_relative_to(unpacked)
    assert figures == [*map(str, SIZES), "True"]
