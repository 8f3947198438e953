import json
import sys

from edge.provenance import provenance, write_json


def test_the_command_is_recorded_without_passwords(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/rws", "run", "rtsp://me:secret@camera:554/a", "--limit", "3"])
    record = provenance(seed=3)
    assert record["command"] == "rws run rtsp://me:***@camera:554/a --limit 3"
    assert record["seed"] == 3
    assert {"python", "numpy", "onnxruntime", "rws-edge"} <= set(record["versions"])
    write_json(tmp_path / "deep" / "result.json", record)
    assert json.loads((tmp_path / "deep" / "result.json").read_text()) == record
