"""Build hook: typed protobuf and gRPC stubs from protos/, at every install, editable or wheel."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class StubsBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Writes generated/ledger/**: *_pb2.py, *_pb2_grpc.py and their .pyi files."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Generate before the files of the wheel are gathered."""
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        protos, out = root / "protos", root / "generated"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        subprocess.run(  # noqa: S603  (fixed arguments)
            [
                sys.executable,
                "-m",
                "grpc_tools.protoc",
                f"--proto_path={protos}",
                f"--python_out={out}",
                f"--grpc_python_out={out}",
                f"--mypy_out={out}",
                f"--mypy_grpc_out={out}",
                *sorted(str(path) for path in protos.rglob("*.proto")),
            ],
            check=True,
        )
        package = out / "ledger"
        for folder in [package, *(path for path in package.rglob("*") if path.is_dir())]:
            (folder / "__init__.py").touch()
        (package / "py.typed").touch()
