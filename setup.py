"""What pyproject.toml cannot say: a wheel carries a copy of the experiments and of what is published, as `vitlab/shipped/`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
SHIPPED = (
    "CITATION.cff",
    "experiments/**/*.yaml",
    "experiments/*.json",
    "results/*/weights/*.safetensors",
    "results/*/records/*.json",
    "results/*/claims.json",
)


class WithShipped(build_py):
    """Also copies the experiments, and the published weights, records and claims. An editable install reads them where they are."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        sys.path.insert(0, str(HERE))
        from vitlab import code

        to = Path(self.build_lib) / "vitlab" / "shipped"
        shutil.rmtree(to, ignore_errors=True)  # of an earlier build
        for path in [path.relative_to(HERE) for pattern in SHIPPED for path in HERE.glob(pattern)]:
            if not path.as_posix().startswith("results/quick-"):  # git ignores these too
                (to / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(HERE / path, to / path)
        (to / code.STATE).write_text(json.dumps(code.git_state()), encoding="utf-8")


setup(cmdclass={"build_py": WithShipped})
