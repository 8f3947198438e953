import pytest
from typer.testing import CliRunner

from rws.cli import app
from support.fakes import write_video

runner = CliRunner()


@pytest.fixture
def rws(tiny_bundle):
    def call(command, *arguments, bundle=tiny_bundle.path):
        return runner.invoke(app, [command, *map(str, arguments), "--bundle", str(bundle)])

    return call


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "clip.mp4", range(20, 240, 11))
